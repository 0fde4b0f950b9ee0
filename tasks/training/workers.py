"""Training under Ray Train: workers, their progress, and their checkpoint.

Workers run `pyramid_model.train.loop` and divide the training by `parallel` (`pyramid_model.parallel.training`). All
of them write checkpoints under `<root>/checkpoints/<model_id>/`. Every start reads the newest that is whole, so it
makes no difference whether a worker died (Ray Train starts the group again, at most `MAX_FAILURES` times) or the whole
driver was killed (the same command starts the step again): the weights at the end are the same, bit for bit. Data,
noise and order of samples are functions of (seed, step, index of the batch), so a checkpoint needs no position in the
data, and any number of workers that divides the batches of a step sees the same ones.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyramid_model.train.config import ParallelConfig
from pyramid_model.weights.record import TRAINING_FILE, TrainedModel
from tasks.models.folders import read_record
from tasks.models.tracking import TrainingLog, check_tracking
from tasks.running.cluster import connect
from tasks.running.errors import StepError, machine_lost
from tasks.running.run import report_progress
from tasks.tables.stored_folders import writing_folder
from tasks.training.board import LOG, Board, ToBoard
from tasks.training.job import RAY_FOLDER, Job, Training, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pyramid_model.train.throughput import Throughput

MAX_FAILURES = 2
POLL_S = 0.5
LOG_AGAIN_S = 300.0  # pause after an outage of MLflow before the next try


class Curve:
    """The curve in MLflow while a training runs. An outage is a warning: `run_training` logs what is missing later."""

    def __init__(self, job: Job):
        self.job = job
        self.log: TrainingLog | None = None
        self.missing: list[dict[str, float]] = []
        self.again = 0.0  # time.monotonic()

    def add(self, rows: list[dict[str, float]]) -> None:
        """Log rows, with those that could not be logged before."""
        from mlflow.exceptions import MlflowException

        self.missing += rows
        if time.monotonic() < self.again:
            return
        job = self.job
        try:
            self.log = self.log or TrainingLog(job.run, job.kind, job.model_id, job.config.model_dump(mode="json"))
            self.log.add(self.missing)
            self.missing = []
        except (MlflowException, OSError) as err:
            LOG.warning("MLflow does not take the curve; the training goes on, and it will be logged later: %s", err)
            self.again = time.monotonic() + LOG_AGAIN_S

    def stopped(self, err: BaseException) -> None:
        """Set the final status of a training that did not end: FAILED after an error, KILLED if it was stopped."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException, OSError):
            if self.log:
                self.log.end("FAILED" if isinstance(err, Exception) else "KILLED")


def fit(job: Job, step: str) -> dict[str, float]:
    """Run the workers to the end; returns seconds by name.

    Raises:
        RegistryError: there is no tracking store for the curve.
        StepError: the cluster is too small, the training diverged, or its workers failed too often.
    """
    started = time.time()
    check_tracking(job.run.root)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if job.run.ray.address == "local":  # preemption of this machine would end the driver, too
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray_start_s = connect(job.run.ray)
    import ray

    board: Any = ray.remote(num_cpus=0)(Board).remote()
    outcome: list[BaseException | None] = []
    fitting = threading.Thread(target=_run_trainer, args=(job, board, outcome), daemon=True)
    fitting.start()
    curve = Curve(job)
    try:
        first_row_s = _watch(job, step, board, fitting, curve) - started
        ray.kill(board)
        if isinstance(outcome[0], StepError):
            raise outcome[0]
        if outcome[0] is not None:
            raise StepError(f"step {step!r} stopped: {outcome[0]}", transient=_machine_lost(outcome[0])) from outcome[0]
    except BaseException as err:
        curve.stopped(err)
        raise
    record = read_record(job.uri)
    assert record is not None, "training ends with the record"
    busy_s = record.busy_s
    end_s = max(0.0, time.time() - started - first_row_s - busy_s)
    return {"busy_s": busy_s, "ray_start_s": ray_start_s, "workers_start_s": first_row_s - ray_start_s, "end_s": end_s}


def _watch(job: Job, step: str, board: Any, fitting: threading.Thread, curve: Curve) -> float:
    """Report progress and log the curve until the trainer ends; returns the time of the first row.

    Raises:
        StepError: the training diverged, or made no step for `ray.no_progress_timeout_s`.
    """
    import ray

    num_steps, limit_s = job.config.optim.num_steps, job.run.ray.no_progress_timeout_s
    report_progress(step, 0, num_steps, "steps")
    last_seen, first_row = time.monotonic(), 0.0
    while fitting.is_alive():
        fitting.join(POLL_S)
        rows, messages, fatal = ray.get(board.take.remote())
        for level, message in messages:
            LOG.log(level, "%s", message)
        if rows:
            first_row = first_row or time.time()
            last_seen = time.monotonic()
            done = int(rows[-1]["step"]) - job.first_step
            report_progress(step, done, num_steps, "steps", progress_detail(rows[-1], num_steps - done))
            curve.add(rows)
        if fatal:
            ray.shutdown()  # ends the workers; Ray Train would start them again first
            raise StepError(f"step {step!r} stopped: {fatal}")
        if time.monotonic() - last_seen > limit_s:
            ray.shutdown()
            raise StepError(f"step {step!r}: no training step within {limit_s:g} s (ray.no_progress_timeout_s)")
    return first_row or time.time()


def progress_detail(row: Mapping[str, float], steps_left: int) -> str:
    """Figures of a row of the curve and the time that is left, such as "loss 0.31, 12,000 tokens/s, 3 min left"."""
    formats = {"loss": "loss {:.4g}", "tokens_per_s": "{:,.0f} tokens/s", "mfu": "MFU {:.0%}"}
    parts = [text.format(row[name]) for name, text in formats.items() if name in row]
    if "step_s" in row and steps_left:
        parts.append(f"{steps_left * row['step_s'] / 60:,.0f} min left")
    return ", ".join(parts)


def _machine_lost(err: BaseException) -> bool:
    """As `machine_lost`, also for the errors of workers and controller, which Ray Train keeps in attributes."""
    inner = [*getattr(err, "worker_failures", {}).values(), getattr(err, "controller_failure", None)]
    return any(map(machine_lost, (err, *inner)))


def _run_trainer(job: Job, board: Any, outcome: list[BaseException | None]) -> None:
    """Ray Train in a separate thread, so that the driver can read progress and Ctrl-C still interrupts it."""
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig

        with_gpu = on_gpu(job.config)
        resources = {"CPU": job.config.cpus_per_worker} | ({"GPU": 1} if with_gpu else {})
        _trainer_class(job.run.ray.address == "local")(
            train_worker,
            train_loop_config={"job": job, "board": board},
            torch_config=TorchConfig(backend="nccl" if with_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=job.config.num_workers, use_gpu=with_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=RAY_FOLDER,
                storage_path=job.checkpoints,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        ).fit()
        outcome.append(None)
    except BaseException as err:
        outcome.append(err)


def _trainer_class(embedded: bool) -> type:
    """Ray's TorchTrainer without helper processes that have nothing to do here; each takes seconds of CPU to start.

    No dataset is sharded by Ray Train, and an embedded Ray ends with its driver, placement groups included.
    """
    from ray.train.torch import TorchTrainer

    idle = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if embedded else set())

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list:
            return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in idle]

    return LeanTrainer


def on_gpu(config: TrainingConfig) -> bool:
    """Whether to train on GPUs. Raises an error if the cluster is too small, since Ray would wait for ever."""
    import ray

    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 0), cluster.get("GPU", 0)
    num_cpus = config.num_workers * config.cpus_per_worker
    if num_cpus > cpus:
        raise StepError(
            f"{config.num_workers} workers of {config.cpus_per_worker} CPUs need {num_cpus} CPUs and the cluster has "
            f"{cpus:g}: lower num_workers or cpus_per_worker, or add nodes"
        )
    if config.use_gpu == "yes" and gpus < config.num_workers:
        raise StepError(f"{config.num_workers} GPUs are asked for and the cluster has {gpus:g}: set use_gpu to auto")
    return config.use_gpu != "no" and gpus >= config.num_workers


# ---- workers ---------------------------------------------------------------------------------------------------------


def train_worker(settings: dict[str, Any]) -> None:
    """Function that Ray Train runs in every worker."""
    import ray
    import ray.train

    job, board = settings["job"], settings["board"]
    if reason := ray.get(board.failed.remote()):
        raise RuntimeError(reason)
    context = ray.train.get_context()
    try:
        _train(job, board, context.get_world_rank(), context.get_world_size())
    except Exception as err:
        if _is_final(err):
            ray.get(board.fail.remote(f"{type(err).__name__}: {err}"))
        raise


def _is_final(err: Exception) -> bool:
    """Whether new workers would fail in the same way. Other errors may be caused by the death of another worker."""
    from pyramid_model.train.guards import TrainingDiverged
    from pyramid_model.train.rehearsal import DoesNotFit

    return isinstance(err, TrainingDiverged | DoesNotFit | StepError) or not isinstance(err, RuntimeError | OSError)


def _train(job: Job, board: Any, rank: int, world_size: int) -> None:
    import ray
    import ray.train.torch
    import torch

    from pyramid_model.parallel.training import parallelise
    from pyramid_model.train.checkpoints import Checkpoints
    from pyramid_model.train.guards import memory_plan, state_bytes
    from pyramid_model.train.loop import TrainState, train, validated
    from pyramid_model.train.read_ahead import ReadAhead
    from pyramid_model.train.rehearsal import rehearse

    torch.set_num_threads(job.config.cpus_per_worker)
    first = rank == 0
    if first:
        LOG.setLevel(logging.INFO)
        LOG.addHandler(ToBoard(board))
    device = ray.train.torch.get_device()
    training: Training[nn.Module] = job.training(device=device)
    objective = training.objective().to(device)
    checkpoints = Checkpoints(job.checkpoints, about=job.about)
    if not checkpoints.exist() and not job.ids.parent:
        training.initialise(objective)
    state = TrainState.start(parallelise(objective, job.config.parallel, device), job.config.optim)
    validate = partial(training.validate, objective)
    if not checkpoints.load(state) and (parent := job.ids.parent):
        untrained = validated(state, validate)
        Checkpoints(parent.checkpoints).load(state, step=parent.step)
        state.begin(job.config.optim, untrained)
    sizes = state_bytes(state.objective, state.optimizer, state.ema.shadow)
    sizes["activations of the largest batch"] = rehearse(state.objective, training.largest(), sizes)
    indices = job.config.batches_of_rank(rank, world_size)
    batches = ReadAhead(
        lambda step: [training.batch(step, index) for index in indices], state.first_step + job.config.optim.num_steps
    )
    if first:
        for line in (*training.describe(), memory_plan(sizes)):
            LOG.info("%s", line)
    started = time.time()
    on_log = board.post.remote if first else None
    measure = _throughput(objective, job.config.parallel, device) if first else None
    train(state, job.config.optim, batches, validate=validate, on_log=on_log, checkpoints=checkpoints, measure=measure)
    facts = state.facts()
    step = checkpoints.load_best(state)
    weights = state.model_weights()
    if first:
        model = training.objective()
        model.load_state_dict(weights)
        _save_model(job, training, model.to(device), facts, step, time.time() - started)
        checkpoints.retire(step, keep_last=1)


def _throughput(objective: "nn.Module", parallel: ParallelConfig, device: "torch.device") -> "Throughput | None":
    """Counts tokens and FLOPs of a DiT; None for a VAE, whose FLOPs are not known."""
    import torch

    from pyramid_model.train.dit_loss import DiTObjective
    from pyramid_model.train.flops import matrix_rate
    from pyramid_model.train.throughput import Throughput

    if not isinstance(objective, DiTObjective):
        return None
    rate = matrix_rate(device, getattr(torch, parallel.precision))
    return Throughput(objective.dit, parallel.share_batch, rate)


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
