"""Make a model that passed the gate the champion: the one that generates."""

from pydantic import Field

from pyramid_model.config import Config
from tasks.models.registry import champion, promote
from tasks.running.run import Run, StepResult
from tasks.running.step import step


class RegisterConfig(Config):
    """The evaluation whose model becomes champion."""

    evaluation_id: str = Field(description="id of an evaluation that passed the gate")


class RegisterResult(StepResult):
    """The model that is champion now."""

    model_id: str
    weights_hash: str
    version: str = Field(description="version of the model in MLflow's registry")


@step
def register(run: Run, config: RegisterConfig) -> RegisterResult:
    """Register the evaluated model in MLflow and give it the alias `champion`; does nothing if it is champion.

    Raises:
        RegistryError: the evaluation did not pass, or the champion has changed since.
    """
    before = champion(run.root)
    now = promote(run, config.evaluation_id)
    is_new = before is None or before.version != now.version
    return RegisterResult(
        step="register",
        num_in=1,
        num_ok=int(is_new),
        num_done=int(not is_new),
        model_id=now.model_id,
        weights_hash=now.dit.hash,
        version=now.version,
        note=f"version {now.version} is {'now ' if is_new else ''}the champion",
    )
