"""The Ray that a run works on: joining it, what it has room for, and single functions that it computes."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tasks.running.errors import StepError
from tasks.running.run import RayConfig, Run

START_TRIES = 3
R = TypeVar("R")


def connect(config: RayConfig) -> float:
    """Join the cluster of `ray.address`, starting an embedded Ray for `local`; returns the seconds it took."""
    # Under `uv run`, Ray would start its workers in a second environment and another folder.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A pipeline that outlives its driver's shutdown must not start a second Ray.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Ray's own warnings stay in its log files; what a user must know reaches the driver as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "60")
    started = time.monotonic()
    import ray

    if ray.is_initialized():
        return 0.0
    embedded: dict[str, Any] = {
        "num_cpus": config.num_cpus or os.cpu_count(),
        "object_store_memory": 256 * 2**20,  # ids and counts only: frames never pass through it
        "include_dashboard": False,
    }
    own = embedded if config.address == "local" else {}
    # On a busy machine a part of Ray gives up after 15 s, which no setting changes; the next start finds warm files.
    for tries_left in reversed(range(START_TRIES if own else 1)):
        try:
            with _quiet_stderr():
                ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR, **own)
            break
        except Exception:
            ray.shutdown()
            if not tries_left:
                raise
    return time.monotonic() - started


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Ray's C++ core announces its log level on file descriptor 2, whatever the level; Python errors still raise."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def num_actors(cpus_per_actor: float, gpus_per_actor: float, num_blocks: int) -> int:
    """Pool size that leaves one CPU free for Ray Data's own tasks, so that a pipeline cannot starve itself.

    Raises:
        StepError: the cluster has not even the resources of one actor.
    """
    import ray

    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    if gpus_per_actor > gpus:
        raise StepError(f"an actor asks for {gpus_per_actor} GPU and the cluster has {gpus:g}: set num_gpus to 0")
    if cpus_per_actor > cpus:
        raise StepError(f"an actor asks for {cpus_per_actor} CPU and the cluster has {cpus:g}: add nodes or CPUs")
    fitting = math.floor((cpus - 1) / cpus_per_actor) if cpus_per_actor else num_blocks
    # Without a GPU an actor keeps a core busy, whatever share of it is reserved.
    most = gpus / gpus_per_actor if gpus_per_actor else cpus
    fitting = min(fitting, math.floor(most))
    return max(1, min(fitting, num_blocks))


def on_ray(run: Run, function: Callable[..., R], *arguments: Any) -> R:
    """Result of a function run as a Ray task: this process stays free of torch, and a cluster does the work."""
    connect(run.ray)
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ray.remote(num_cpus=1)(function).remote(*arguments))
    except RayTaskError as err:
        raise StepError(f"the model cannot be made ready: {err.cause}") from err
