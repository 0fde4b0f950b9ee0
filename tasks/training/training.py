"""What the trainings of the VAE and the DiT share: settings, identity, and how a trained model is recorded.

The training itself runs under Ray Train, see `tasks.training.workers`.
"""

import contextlib
import json
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow.compute as pc
from pydantic import Field

from pyramid_model.config import Config
from pyramid_model.train.config import OptimConfig
from tasks.models.folders import read_training
from tasks.models.registry import TrainingLog
from tasks.running.step import Run, StepResult, lineage
from tasks.tables import storage
from tasks.tables.delta import append_again, append_block, content_id, ok_row, read_table, table_version

if TYPE_CHECKING:
    from torch import nn

    from pyramid_model.train.loop import Batch

# Settings that change how a training runs and not what comes out of it: they are no part of a model's identity.
NOT_IDENTITY = {"selection", "captions", "vae", "encoder", "use_gpu"}


class TrainingConfig(Config):
    """Settings that both trainings share."""

    selection: str = Field("", description="which selection; empty: the newest")
    optim: OptimConfig = OptimConfig()
    num_workers: int = Field(1, ge=1, description="processes, each with its own batch of optim.batch_size samples")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs, and so torch threads, of a worker")
    use_gpu: Literal["auto", "yes", "no"] = Field("auto", description="auto: when the cluster has one for each worker")


class Training(Protocol):
    """What one model brings to the shared loop; built in every worker, with the data it needs."""

    num_train: int
    num_val: int
    bad: Sequence[str]  # items that could not be read, "id: reason"

    def objective(self) -> "nn.Module":
        """The model with its loss, freshly initialised from the seed."""
        ...

    def batch(self, step: int) -> "Batch":
        """This worker's batch of a step."""
        ...

    def validate(self, objective: "nn.Module") -> dict[str, float]:
        """Figures on held-out data."""
        ...

    def save(self, objective: "nn.Module", folder: str) -> None:
        """Write the model's folder."""
        ...


@dataclass(frozen=True)
class Job:
    """One training, as the driver describes it and the workers get it.

    kind: vae | dit. model_id: identity of settings and data. training: class of the model's side, built as
    `training(rank=…, world_size=…, device=…, **arguments)`. facts: what `models.config` keeps beside the settings.
    """

    kind: str
    model_id: str
    run: Run
    config: TrainingConfig
    training: type
    arguments: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """Folder of the finished model."""
        return self.run.models(f"{self.kind}-{self.model_id}")

    @property
    def checkpoint(self) -> str:
        """The file that a killed training goes on from."""
        return storage.join(self.run.root, "checkpoints", self.model_id, "state.pt")


def model_id(kind: str, version: str, config: TrainingConfig, data_ids: Sequence[Any]) -> str:
    """Identity of a training: the same settings on the same data are never trained twice."""
    settings = config.model_dump(mode="json", exclude=NOT_IDENTITY)
    settings = {name: value for name, value in settings.items() if value is not None}  # a section that is left out
    for name in ("checkpoint_every", "log_every"):
        settings["optim"].pop(name)
    return content_id(kind, version, settings, list(data_ids))


def positions_alike(groups: Sequence[Hashable]) -> list[list[int]]:
    """For each position, all those of its group."""
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    return [members[group] for group in groups]


def pick_samples(
    alike: Sequence[Sequence[int]], batch_size: int, seed: int, step: int, rank: int, world_size: int
) -> list[int]:
    """Positions of one worker's samples at a step, all of one group (clips of one size can be stacked).

    The group is drawn anew each step, in proportion to its size, and is the same for all workers.
    alike: of each sample, the positions of its group (`positions_alike`).
    """
    from pyramid_model.train.batches import batch_indices

    drawn = batch_indices(len(alike), 1, seed + 1, step)[0] if len(alike[0]) < len(alike) else 0
    chosen = alike[drawn]
    return [chosen[i] for i in batch_indices(len(chosen), batch_size, seed, step, rank, world_size)]


def run_training(job: Job, step: str, step_version: str) -> StepResult:
    """Train unless this very model exists, record it, and return where it is.

    A model whose weights are complete but whose row is missing (killed in between) is only recorded.

    Raises:
        StepError: the cluster is too small, the training diverged, or a worker failed for good.
    """
    run = job.run
    made = (pc.field("status") == "ok") & (pc.field("kind") == job.kind)
    rows = read_table(run.root, "models", ["model_id", "weights_hash", "created_at"], where=made)
    rows = rows.sort_by("created_at").to_pylist()
    done = [row for row in rows if row["model_id"] == job.model_id]
    if done:
        if rows[-1] not in done:  # it is the newest again, for steps that take the newest
            append_again(run.root, "models", [job.model_id], lineage(run, step, step_version, job.config))
        outputs = _outputs(job, done[0]["weights_hash"])
        return StepResult(step=step, num_in=1, num_done=1, outputs=outputs, note="trained before")
    params = job.config.model_dump(mode="json")
    timings: dict[str, float] = {}
    if not read_training(job.uri):
        from tasks.training.workers import fit

        timings = fit(job, step)
    trained = read_training(job.uri)
    started = time.time()
    log = TrainingLog(run.root, job.kind, job.model_id, params)
    log.add(trained["curve"])
    mlflow_run_id = log.finish(trained["metrics"], {"uri": job.uri, "weights_hash": trained["weights_hash"]})
    timings["mlflow_s"] = time.time() - started
    row = ok_row(
        {},
        model_id=job.model_id,
        kind=job.kind,
        weights_hash=trained["weights_hash"],
        uri=job.uri,
        num_steps=job.config.optim.num_steps,
        config=json.dumps({"config": params} | job.facts),
        metrics=json.dumps(trained["metrics"]),
        curve=json.dumps(trained["curve"]),
        mlflow_run_id=mlflow_run_id,
    )
    block = content_id("models", job.model_id)
    append_block(run.root, "models", [row], block, lineage(run, step, step_version, job.config))
    _remove_checkpoint(job)
    return StepResult(
        step=step,
        num_in=1,
        num_ok=1,
        rows={"models": 1},
        versions={"models": table_version(run.root, "models")},
        outputs=_outputs(job, trained["weights_hash"]),
        note=_summary(trained["metrics"]),
        busy_s=timings.pop("busy_s", 0.0),
        timings=timings,
    )


def _outputs(job: Job, weights_hash: str) -> dict[str, str]:
    return {"model_id": job.model_id, "uri": job.uri, "weights_hash": weights_hash, job.kind: job.uri}


def _summary(metrics: Mapping[str, Any]) -> str:
    name = "val_psnr" if "val_psnr" in metrics else "val_loss"
    return f"{name} {metrics[f'{name}_untrained']:.4g} untrained, {metrics[name]:.4g} trained"


def _remove_checkpoint(job: Job) -> None:
    fs, path = storage.filesystem(os.path.dirname(job.checkpoint))
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)
