"""Description of a training that the driver sends to its workers: settings, data, and id of the trained model."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from pyramid_model.config import NOT_IDENTITY, Config, identity
from pyramid_model.train.config import OptimConfig, ParallelConfig
from pyramid_model.weights.record import TrainedOn
from tasks.running.run import Run, StepResult
from tasks.tables import storage
from tasks.tables.content_ids import content_id

if TYPE_CHECKING:
    from torch import nn

    from pyramid_model.train.loop import Batch


class TrainingConfig(Config):
    """Settings that both trainings share."""

    selection: str = Field(
        default="", description="id of the selection; empty: the newest", json_schema_extra=NOT_IDENTITY
    )
    optim: OptimConfig = OptimConfig()
    num_workers: int = Field(
        default=1, ge=1, description="processes, each with its own batch of optim.batch_size samples"
    )
    parallel: ParallelConfig = Field(
        default=ParallelConfig(),
        description="division of the training among its workers",
        json_schema_extra=NOT_IDENTITY,
    )
    cpus_per_worker: int = Field(
        default=1, ge=1, description="CPUs and torch threads of a worker", json_schema_extra=NOT_IDENTITY
    )
    use_gpu: Literal["auto", "yes", "no"] = Field(
        default="auto", description="auto: if the cluster has a GPU for each worker", json_schema_extra=NOT_IDENTITY
    )

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        self.parallel.check(self.num_workers)
        return self


class TrainingResult(StepResult):
    """The trained model, or an existing one for the same settings and data."""

    model_id: str
    weights_hash: str
    uri: str = Field(description="folder of the model")


Objective = TypeVar("Objective", bound="nn.Module")


class Training(Protocol[Objective]):
    """The part of a training that depends on the model; every worker builds it, with the data that it needs."""

    num_train: int
    num_val: int

    @property
    def bad(self) -> Sequence[str]:
        """Items that could not be read, as "id: reason"."""
        ...

    def objective(self) -> Objective:
        """The model with its loss, freshly initialised from the seed."""
        ...

    def batch(self, step: int) -> "Batch":
        """This worker's batch of a step."""
        ...

    def validate(self, objective: Objective) -> dict[str, float]:
        """Figures on held-out data."""
        ...

    def save(self, objective: Objective, folder: str) -> None:
        """Write the model's folder."""
        ...


@dataclass(frozen=True)
class Job:
    """One training, as the driver describes it and the workers get it.

    kind: vae | dit. model_id: identity of settings and data. training: builds the `Training` in a worker, called as
    `training(rank=…, world_size=…, device=…)`. trained_on: data and models that the record names.
    """

    kind: Literal["vae", "dit"]
    model_id: str
    run: Run
    config: TrainingConfig
    training: Callable[..., Training[Any]]
    trained_on: TrainedOn = field(default_factory=TrainedOn)

    @property
    def uri(self) -> str:
        """Folder of the finished model."""
        return self.run.models(f"{self.kind}-{self.model_id}")

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints from which a killed training resumes."""
        return storage.join(self.run.root, "checkpoints", self.model_id)


def model_id(kind: str, version: str, config: TrainingConfig, data_ids: Sequence[object]) -> str:
    """Identity of a training: the same settings on the same data are never trained twice."""
    return content_id(kind, version, identity(config), list(data_ids))


def positions_alike(groups: Sequence[Hashable]) -> list[list[int]]:
    """For each sample, the positions of all samples of the same group (shape)."""
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    return [members[group] for group in groups]


def pick_samples(
    alike: Sequence[Sequence[int]], batch_size: int, seed: int, step: int, rank: int, world_size: int
) -> list[int]:
    """Positions of one worker's samples at a step, all of one group (clips of one size can be stacked).

    The group is drawn again at each step, in proportion to its size, and is the same for all workers.
    alike: of each sample, the positions of its group (`positions_alike`).
    """
    from pyramid_model.train.batches import batch_indices

    drawn = batch_indices(len(alike), 1, seed + 1, step)[0] if len(alike[0]) < len(alike) else 0
    chosen = alike[drawn]
    return [chosen[i] for i in batch_indices(len(chosen), batch_size, seed, step, rank, world_size)]
