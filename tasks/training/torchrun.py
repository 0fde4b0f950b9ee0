"""A training on the ranks that torchrun has started, without Ray.

All ranks run the same command. The first one runs the step as a driver does; the others wait for its job. Starting
again after a failure is torchrun's part (`--max-restarts`): the training continues from its last checkpoint.
"""

import logging
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from pyramid_model.config import Config
from tasks.models.folders import read_record
from tasks.models.tracking import check_tracking
from tasks.running.errors import StepError
from tasks.running.run import Run, StepResult
from tasks.running.step import StepFunction
from tasks.training.board import LOG
from tasks.training.curve import Curve
from tasks.training.job import Job
from tasks.training.rank import is_final, train_rank

if TYPE_CHECKING:
    import torch

C = TypeVar("C", bound=Config)
R = TypeVar("R", bound=StepResult)


def has_ranks() -> bool:
    """Whether torchrun has started this process as one of its ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_first(step: StepFunction[C, R], run: Run, config: C) -> R:
    """Run the step of a training on the first rank; afterwards the other ranks end, also if nothing was trained.

    Raises:
        StepError: as the step.
    """
    _join()
    result = step(run, config)
    _share(None)
    _leave()
    return result


def serve() -> None:
    """Run the trainings that the first rank starts, on any other rank."""
    _join()
    while (job := _share(None)) is not None:
        train_rank(job, _device(job), on_row=lambda row: None)
    _leave()


def fit(job: Job, step: str) -> dict[str, float]:
    """Train on all ranks, from the first one; returns seconds by name.

    Raises:
        RegistryError: there is no tracking store for the curve.
        StepError: the training diverged, does not fit into the memory, or asks for a GPU that is not there.
    """
    check_tracking(job.run.root)
    device = _device(job)
    _share(job)
    LOG.setLevel(logging.INFO)
    curve = Curve(job.run, job.kind, job.model_id, job.config.model_dump(mode="json"), job.first_step)
    curve.report(step, [])
    started = time.time()
    try:
        train_rank(job, device, on_row=lambda row: curve.report(step, [row]))
    except BaseException as err:
        curve.stopped(err)
        if isinstance(err, Exception) and is_final(err):
            raise StepError(f"step {step!r} stopped: {type(err).__name__}: {err}") from err
        raise
    record = read_record(job.uri)
    assert record is not None, "training ends with the record"
    return {"busy_s": record.busy_s, "end_s": time.time() - started - record.busy_s}


def _join() -> None:
    """Join the process group of the ranks that torchrun has started."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def _leave() -> None:
    """End the process group."""
    import torch.distributed as dist

    dist.destroy_process_group()


def _share(job: Job | None) -> Job | None:
    """The job of the first rank, on every rank; None: there is no further one. A collective call of all ranks."""
    import torch
    import torch.distributed as dist

    jobs: list[Any] = [job]
    dist.broadcast_object_list(jobs, src=0, device=torch.device("cpu"))
    return jobs[0]


def _device(job: Job) -> "torch.device":
    """Device of this rank.

    Raises:
        StepError: `use_gpu` is yes, and this machine has fewer GPUs than ranks.
    """
    import torch

    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    enough = gpus >= int(os.environ["LOCAL_WORLD_SIZE"])
    if job.config.use_gpu == "yes" and not enough:
        raise StepError(
            f"{os.environ['LOCAL_WORLD_SIZE']} ranks were started on a machine with {gpus} GPUs: lower --nproc-per-node"
            ", or set use_gpu to auto"
        )
    if job.config.use_gpu == "no" or not enough:
        return torch.device("cpu")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
