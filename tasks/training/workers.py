"""A training under Ray Train: its workers, and their progress.

Every start of the workers reads the newest checkpoint that is whole. So it makes no difference whether a worker died
(Ray Train starts all of them again, at most `MAX_FAILURES` times), a node came or went (with a range in `num_workers`,
Ray Train starts as many workers as there is room for), or the whole driver was killed (the same command starts the step
again). On the same number of workers the weights at the end are the same, bit for bit; on another, up to rounding.
"""

import logging
import os
import threading
import time
from typing import Any

from tasks.models.folders import read_record
from tasks.models.tracking import check_tracking
from tasks.running.cluster import connect
from tasks.running.errors import StepError, machine_lost
from tasks.training.board import LOG, Board, ToBoard
from tasks.training.curve import Curve
from tasks.training.job import RAY_FOLDER, Job, TrainingConfig
from tasks.training.rank import is_final, train_rank

MAX_FAILURES = 2  # of a fixed number of workers
MAX_LOSSES = 20  # of a range of workers, whose nodes may come and go
POLL_S = 0.5


def fit(job: Job, step: str) -> dict[str, float]:
    """Run the workers to the end; returns seconds by name.

    Raises:
        RegistryError: there is no tracking store for the curve.
        StepError: the cluster is too small, the training diverged, or its workers failed too often.
    """
    started = time.time()
    check_tracking(job.run.root)
    fixed = isinstance(job.config.num_workers, int)
    # After the loss of a node, workers of a range are started on it once more, until this time is over.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300" if fixed else "60")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if job.run.ray.address == "local":  # preemption of this machine would end the driver, too
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray_start_s = connect(job.run.ray)
    import ray

    board: Any = ray.remote(num_cpus=0, scheduling_strategy=_this_node())(Board).remote()
    outcome: list[BaseException | None] = []
    fitting = threading.Thread(target=_run_trainer, args=(job, board, outcome), daemon=True)
    fitting.start()
    curve = Curve(job.run, job.kind, job.model_id, job.config.model_dump(mode="json"), job.first_step)
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

    limit_s = job.run.ray.no_progress_timeout_s
    curve.report(step, [])
    last_seen, first_row = time.monotonic(), 0.0
    while fitting.is_alive():
        fitting.join(POLL_S)
        rows, messages, fatal = ray.get(board.take.remote())
        for level, message in messages:
            LOG.log(level, "%s", message)
        if rows:
            first_row = first_row or time.time()
            last_seen = time.monotonic()
            curve.report(step, rows)
        if fatal:
            ray.shutdown()  # ends the workers; Ray Train would start them again first
            raise StepError(f"step {step!r} stopped: {fatal}")
        if time.monotonic() - last_seen > limit_s:
            ray.shutdown()
            raise StepError(f"step {step!r}: no training step within {limit_s:g} s (ray.no_progress_timeout_s)")
    return first_row or time.time()


def _this_node() -> Any:
    """Places an actor on the node of the driver, so that it is lost only with the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _machine_lost(err: BaseException) -> bool:
    """As `machine_lost`, also for the errors of workers and controller, which Ray Train keeps in attributes."""
    inner = [*getattr(err, "worker_failures", {}).values(), getattr(err, "controller_failure", None)]
    return any(map(machine_lost, (err, *inner)))


def _run_trainer(job: Job, board: Any, outcome: list[BaseException | None]) -> None:
    """Ray Train in a separate thread, so that the driver can read progress and Ctrl-C still interrupts it."""
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig

        with_gpu, fixed = on_gpu(job.config), isinstance(job.config.num_workers, int)
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
                failure_config=FailureConfig(max_failures=MAX_FAILURES if fixed else MAX_LOSSES),
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

    cluster, fewest = ray.cluster_resources(), config.fewest_workers
    cpus, gpus = cluster.get("CPU", 0), cluster.get("GPU", 0)
    num_cpus = fewest * config.cpus_per_worker
    if num_cpus > cpus:
        raise StepError(
            f"{fewest} workers of {config.cpus_per_worker} CPUs need {num_cpus} CPUs and the cluster has {cpus:g}: "
            "lower num_workers or cpus_per_worker, or add nodes"
        )
    if config.use_gpu == "yes" and gpus < fewest:
        raise StepError(f"{fewest} GPUs are asked for and the cluster has {gpus:g}: set use_gpu to auto")
    return config.use_gpu != "no" and gpus >= fewest


def train_worker(settings: dict[str, Any]) -> None:
    """Function that Ray Train runs in every worker."""
    import ray
    import ray.train.torch

    from pyramid_model.train.ranks import rank

    job, board = settings["job"], settings["board"]
    if reason := ray.get(board.failed.remote()):
        raise RuntimeError(reason)
    if rank() == 0:
        LOG.setLevel(logging.INFO)
        LOG.addHandler(ToBoard(board))
    try:
        train_rank(job, ray.train.torch.get_device(), on_row=board.post.remote)
    except Exception as err:
        if is_final(err):
            ray.get(board.fail.remote(f"{type(err).__name__}: {err}"))
        raise
