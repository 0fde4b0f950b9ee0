"""`whole.json`, the file that marks a checkpoint as whole: what it says about its training."""

from typing import Any

from pydantic import BaseModel, ValidationError

from pyramid_model.train.checkpoint_names import WHOLE, checkpoint_name, step_of
from pyramid_model.weights.record import TrainedOn
from tasks.running.errors import StepError
from tasks.tables import storage
from tasks.training.ids import Kind


class About(BaseModel):
    """The training of a checkpoint, see `Job.about`."""

    kind: Kind
    model_id: str
    settings: dict[str, Any]
    trained_on: TrainedOn
    norm_clips: list[dict[str, str]] = []


class Facts(BaseModel):
    """The state of a training; of its facts only what is needed without torch."""

    step: int


class Mark(BaseModel):
    """Content of `whole.json`, without the list of files."""

    about: About
    facts: Facts


def read_mark(file: str) -> Mark:
    """Read a `whole.json`.

    Raises:
        StepError: it is damaged, or not from a training of this package.
    """
    try:
        return Mark.model_validate_json(storage.read_bytes(file))
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise StepError(
            f"{file} says nothing about a checkpoint that can be used ({place}: {first['msg']}): remove its folder, or "
            "give another checkpoint"
        ) from err


def newest_mark(folder: str) -> Mark | None:
    """That of the newest checkpoint in a folder of checkpoints; None if it has none.

    Raises:
        StepError: as `read_mark`.
    """
    fs, path = storage.filesystem(folder)
    steps = [step_of(file.split("/")[-2]) for file in map(str, fs.glob(f"{path}/*/{WHOLE}"))]
    newest = max((step for step in steps if step is not None), default=None)
    return None if newest is None else read_mark(storage.join(folder, checkpoint_name(newest), WHOLE))
