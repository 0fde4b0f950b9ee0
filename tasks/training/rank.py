"""A training on one of its ranks. Ray Train starts the ranks (`workers`), or torchrun (`torchrun`).

Ranks run `pyramid_model.train.loop`, divide the training by `parallel` (`pyramid_model.parallel.training`), and write
checkpoints under `<root>/checkpoints/<model_id>/`. Batches and noise are functions of (seed, step, index of the batch),
so a checkpoint needs no position in the data, and any number of ranks sees the same batches.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyramid_model.train.config import ParallelConfig
from pyramid_model.weights.record import TRAINING_FILE, TrainedModel
from tasks.running.errors import StepError
from tasks.tables.stored_folders import writing_folder
from tasks.training.board import LOG
from tasks.training.job import Job, Training

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pyramid_model.train.checkpoints import Checkpoints
    from pyramid_model.train.loop import Batch, TrainState
    from pyramid_model.train.read_ahead import ReadAhead
    from pyramid_model.train.throughput import Throughput


def train_rank(job: Job, device: "torch.device", on_row: Callable[[dict[str, float]], Any]) -> None:
    """Train a model on this rank, and save it on the first one. A collective call of all ranks.

    Args:
        job: the training; the same on all ranks.
        device: of this rank.
        on_row: called on the first rank with each new row of the curve.
    """
    import torch

    from pyramid_model.parallel.training import parallelise
    from pyramid_model.train.checkpoints import Checkpoints
    from pyramid_model.train.guards import memory_plan, state_bytes
    from pyramid_model.train.loop import TrainState, train
    from pyramid_model.train.ranks import rank
    from pyramid_model.train.rehearsal import rehearse

    torch.set_num_threads(job.config.cpus_per_worker)
    first = rank() == 0
    training: Training[nn.Module] = job.training(device=device)
    objective = training.objective().to(device)
    checkpoints = Checkpoints(job.checkpoints, about=job.about)
    if not checkpoints.exist() and not job.ids.parent:
        training.initialise(objective)
    training.probe(objective)
    state = TrainState.start(parallelise(objective, job.config.parallel, device), job.config.optim)
    validate = partial(training.validate, objective)
    _resume(job, state, checkpoints, validate)
    sizes = state_bytes(state.objective, state.optimizers, state.ema.shadow)
    bucket, largest = training.largest()
    if activations := rehearse(state.objective, largest, sizes):
        sizes[f"activations of {len(largest.ids)} x {bucket}"] = activations
    if first:
        for line in (*training.describe(), memory_plan(sizes)):
            LOG.info("%s", line)
    started = time.time()
    train(
        state,
        job.config.optim,
        _batches(job, training, state.first_step + job.config.optim.num_steps),
        validate=validate,
        on_log=on_row if first else None,
        checkpoints=checkpoints,
        measure=_throughput(objective, job.config.parallel, device) if first else None,
    )
    facts = state.facts()
    step = checkpoints.load_best(state)
    weights = state.model_weights()
    if first:
        model = training.objective()
        model.load_state_dict(weights, strict=False)  # without the frozen weights, which it has
        _save_model(job, training, model.to(device), facts, step, time.time() - started)
        checkpoints.retire(step, keep_last=1)


def is_final(err: Exception) -> bool:
    """Whether new ranks would fail in the same way. Other errors may be caused by the death of another rank."""
    from pyramid_model.train.causality import NotCausal
    from pyramid_model.train.guards import TrainingDiverged
    from pyramid_model.train.rehearsal import DoesNotFit

    return isinstance(err, TrainingDiverged | DoesNotFit | NotCausal | StepError) or not isinstance(
        err, RuntimeError | OSError
    )


def _resume(
    job: Job, state: "TrainState", checkpoints: "Checkpoints", validate: Callable[[], dict[str, float]]
) -> None:
    """Restore the newest checkpoint of the training; without one, begin with that of the training it continues."""
    from pyramid_model.train.checkpoints import Checkpoints
    from pyramid_model.train.loop import validated

    if not checkpoints.load(state) and (parent := job.ids.parent):
        untrained = validated(state, validate)
        Checkpoints(parent.checkpoints).load(state, step=parent.step)
        state.begin(job.config.optim, untrained)


def _batches(job: Job, training: "Training[nn.Module]", last_step: int) -> "ReadAhead[list[Batch]]":
    """This rank's batches of a step, which are read while the step before it is computed."""
    from pyramid_model.train.ranks import num_ranks, rank
    from pyramid_model.train.read_ahead import ReadAhead

    weights = job.config.parallel.batches_of_rank(job.config.num_batches, rank(), num_ranks())
    return ReadAhead(
        lambda step: [replace(training.batch(step, index), weight=weight) for index, weight in weights], last_step
    )


def _throughput(objective: "nn.Module", parallel: ParallelConfig, device: "torch.device") -> "Throughput":
    """Counts what this rank computes, in relation to the measured rate of its device."""
    import torch

    from pyramid_model.train.flops import matrix_rate
    from pyramid_model.train.throughput import Throughput

    return Throughput(objective, parallel.share_batch, matrix_rate(device, getattr(torch, parallel.precision)))


def _save_model(
    job: Job,
    training: "Training[nn.Module]",
    objective: "nn.Module",
    facts: dict[str, Any],
    step: int,
    busy_s: float,
) -> None:
    """The model's folder with `training.json`, which is written after all other files.

    facts: of the state after the last step. step: of the weights.
    """
    from pyramid_model.weights.weights import weights_hash

    if training.bad:
        LOG.warning("%d items could not be read and were left out: %s", len(training.bad), "; ".join(training.bad[:5]))
    row = next(row for row in facts["curve"] if row["step"] == step)
    figures = {name: value for name, value in row.items() if name.startswith("val_")}
    untrained = {f"{name}_untrained": value for name, value in facts["untrained"].items()}
    counts = {
        "num_train": training.num_train,
        "num_val": training.num_val,
        "num_bad": len(training.bad),
        "bad": list(training.bad[:20]),
        "num_parameters": sum(weight.numel() for weight in objective.parameters()),
        "train_s": busy_s,
        "best_step": step,
        "skipped": facts["skipped"],
    } | training.baselines(objective)
    with writing_folder(job.uri, last=(TRAINING_FILE,)) as folder:
        training.save(objective, folder)
        record = TrainedModel(
            kind=job.kind,
            model_id=job.model_id,
            weights_hash=weights_hash(folder),
            settings=job.config.model_dump(mode="json"),
            trained_on=job.trained_on,
            metrics=figures | untrained | counts,
            curve=facts["curve"],
            busy_s=busy_s,
        )
        Path(folder, TRAINING_FILE).write_text(record.model_dump_json(indent=1))
