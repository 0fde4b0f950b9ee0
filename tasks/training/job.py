"""Description of a training that the driver sends to its workers: settings, data, and id of the trained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

from pydantic import Field, PositiveInt, model_validator

from pyramid_model.config import NOT_IDENTITY, Config
from pyramid_model.train.config import OptimConfig, ParallelConfig
from pyramid_model.weights.record import TrainedOn
from tasks.running.errors import StepError
from tasks.running.run import Run, StepResult
from tasks.training.ids import Kind, TrainingIds, checkpoints_of

if TYPE_CHECKING:
    from torch import nn

    from pyramid_model.train.loop import Batch
    from tasks.training.clip_reader import SelectedClip

RAY_FOLDER = "ray"  # in the folder of the checkpoints


class TrainingConfig(Config):
    """Settings that both trainings share."""

    selection: str = Field(
        default="", description="id of the selection; empty: the newest", json_schema_extra=NOT_IDENTITY
    )
    continue_from: str = Field(
        default="",
        description="training that this one continues: newest (of the same model and loss), a model_id, or a folder of "
        "checkpoints; empty: none, so that the training starts from initial weights",
        json_schema_extra=NOT_IDENTITY,
    )
    optim: OptimConfig = OptimConfig()
    num_batches: int = Field(
        default=1, ge=1, description="batches of a step, each of optim.batch_size samples, which the workers divide"
    )
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        default=1,
        description="processes; a divisor of num_batches (with share_batch: of num_batches times that); or fewest and "
        "most, e.g. [4, 16]: as many as the cluster has room for, also when nodes come and go",
        json_schema_extra=NOT_IDENTITY,
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

    @property
    def fewest_workers(self) -> int:
        """Workers without which the training waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if not isinstance(self.num_workers, int):
            self._check_range(*self.num_workers)
            return self
        self.parallel.check(self.num_workers)
        groups = self.num_workers // self.parallel.share_batch
        if self.num_batches % groups:
            sharing = f" in groups of parallel.share_batch {self.parallel.share_batch}"
            raise ValueError(
                f"{self.num_workers} workers{sharing if self.parallel.share_batch > 1 else ''} cannot divide "
                f"num_batches {self.num_batches}: set num_batches to a multiple of {groups}, or num_workers lower"
            )
        return self

    def _check_range(self, fewest: int, most: int) -> None:
        if not fewest <= most <= self.num_batches:
            raise ValueError(
                f"num_workers [{fewest}, {most}] must rise, and be at most num_batches {self.num_batches}: lower "
                "num_workers, or raise num_batches"
            )
        if self.parallel.share_batch > 1 or self.parallel.share_weights > 1:
            raise ValueError(
                f"num_workers [{fewest}, {most}] may become any number in between, which does not divide into the "
                "groups of parallel.share_batch and share_weights: set one number, or share_batch 1 and share_weights "
                "0 or 1"
            )


class TrainingResult(StepResult):
    """The trained model, or an existing one for the same settings and data."""

    model_id: str
    weights_hash: str
    uri: str = Field(description="folder of the model")


Objective = TypeVar("Objective", bound="nn.Module")


class Training(Protocol[Objective]):
    """The part of a training that depends on the model. Every worker builds it; all workers see the same data."""

    num_train: int
    num_val: int

    def describe(self) -> list[str]:
        """The plan of the data, for people: clips, batches, tokens and epochs of every size."""
        ...

    @property
    def bad(self) -> Sequence[str]:
        """Items that could not be read, as "id: reason"."""
        ...

    def objective(self) -> Objective:
        """The model with its loss, with random weights from the seed."""
        ...

    def initialise(self, objective: Objective) -> None:
        """Set the weights that a new training starts with, the same on every worker; may use the training data."""
        ...

    def probe(self, objective: Objective) -> None:
        """Check that the model is causal, if it has to be; raises `NotCausal`."""
        ...

    def batch(self, step: int, index: int) -> "Batch":
        """Batch `index` of a step, of `num_batches`: a function of both, the same on every worker."""
        ...

    def largest(self) -> "tuple[str, Batch]":
        """The batch that needs the most memory, with the bucket of its clips."""
        ...

    def validate(self, objective: Objective) -> dict[str, float]:
        """Figures on held-out data."""
        ...

    def baselines(self, objective: Objective) -> dict[str, float]:
        """Held-out figures that the trained model should beat; computed once, at the end."""
        ...

    def save(self, objective: Objective, folder: str) -> None:
        """Write the model's folder."""
        ...


@dataclass(frozen=True)
class Job:
    """One training, as the driver describes it and the workers get it.

    kind: vae | dit. ids: of the training and of the one that it continues. training: builds the `Training` in a worker,
    called as `training(device=…)`. trained_on: data and models that the record names. norm_clips: training clips on
    which shift and scale of a VAE's latents are measured. check: called once before workers start, if the model does
    not exist yet; raises StepError for what they would fail at.
    """

    kind: Kind
    ids: TrainingIds
    run: Run
    config: TrainingConfig
    training: Callable[..., Training[Any]]
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    norm_clips: "Sequence[SelectedClip]" = ()
    check: Callable[[], None] | None = None

    @property
    def model_id(self) -> str:
        """Id of the training."""
        return self.ids.model_id

    @property
    def first_step(self) -> int:
        """Steps of the trainings before this one."""
        return self.ids.parent.step if self.ids.parent else 0

    @property
    def uri(self) -> str:
        """Folder of the finished model."""
        return self.run.models(f"{self.kind}-{self.model_id}")

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints, from which a killed training resumes, and a later training continues."""
        return checkpoints_of(self.run.root, self.model_id)

    @property
    def about(self) -> dict[str, Any]:
        """What every checkpoint says about its training, as JSON."""
        settings, data = self.config.model_dump(mode="json"), self.trained_on.model_dump(mode="json")
        about = {"kind": self.kind, "model_id": self.model_id, "settings": settings, "trained_on": data}
        return about | {"norm_clips": list(self.norm_clips)}


def check_disjoint(train_ids: Sequence[str], val_ids: Sequence[str]) -> None:
    """Check that no held-out clip is trained on.

    Raises:
        StepError: a clip is in both splits.
    """
    if both := set(train_ids) & set(val_ids):
        raise StepError(
            f"{len(both)} clips are in the splits train and val, such as {min(both)}: run the select step again"
        )
