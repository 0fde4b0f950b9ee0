"""The Ray cluster of a run: connection, size of an actor pool, and single functions that run as Ray tasks."""

import atexit
import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import psutil

from tasks.running.errors import StepError
from tasks.running.run import RayConfig, Run

START_TRIES = 3
P = ParamSpec("P")
R = TypeVar("R")


def connect(config: RayConfig) -> float:
    """Join the cluster of `ray.address`, or start an embedded Ray for `local`; returns the seconds that this took."""
    # Under `uv run`, Ray would otherwise start its workers in another environment and folder.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A pipeline that still runs after its driver has shut Ray down must not start a second Ray.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Ray's own warnings stay in its log files; errors that concern the user reach the driver as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "60")
    embedded = config.address == "local"
    if embedded:
        # As on macOS and Windows: with the address of a network card, Ray listens on every address of the machine.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    started = time.monotonic()
    import ray

    if ray.is_initialized():
        return 0.0
    others = {child.pid for child in psutil.Process().children()}
    # On a busy machine a part of Ray times out after 15 s, which no setting changes; the next start reads cached files.
    for tries_left in reversed(range(START_TRIES if embedded else 1)):
        try:
            with _quiet_stderr():
                context: Any = ray.init(
                    address=config.address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    num_cpus=(config.num_cpus or os.cpu_count()) if embedded else None,
                    # The object store holds ids and counts only: frames never pass through it.
                    object_store_memory=256 * 2**20 if embedded else None,
                    include_dashboard=False if embedded else None,
                )
            if embedded:
                os.chmod(context.address_info["session_dir"], 0o700)  # Ray lets every user write into it
                atexit.register(_remove_session, context.address_info["session_dir"])
            break
        except Exception:
            ray.shutdown()
            _kill_new_children(others)
            if not tries_left:
                raise
    return time.monotonic() - started


def _remove_session(folder: str) -> None:
    """Remove the logs and sockets of an embedded Ray that has ended."""
    import ray

    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _kill_new_children(others: set[int]) -> None:
    """Kill the processes that a start of Ray left behind when it timed out. others: children from before the start."""
    for child in (child for child in psutil.Process().children() if child.pid not in others):
        with contextlib.suppress(psutil.Error):
            if any("ray" in part for part in child.cmdline()[:4]):
                child.kill()
                child.wait(10)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard output to file descriptor 2: the C++ core of Ray prints its log level there, whatever the level."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def num_actors(cpus_per_actor: float, gpus_per_actor: float, num_blocks: int) -> int:
    """Number of actors of a pool. One CPU stays free for tasks of Ray Data, without which the pipeline would hang.

    Args:
        cpus_per_actor: CPUs that an actor reserves.
        gpus_per_actor: GPUs that an actor reserves.
        num_blocks: blocks to compute; more actors are of no use.

    Raises:
        StepError: the cluster has fewer resources than one actor reserves.
    """
    import ray

    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    if gpus_per_actor > gpus:
        raise StepError(f"an actor asks for {gpus_per_actor} GPU and the cluster has {gpus:g}: set num_gpus to 0")
    if cpus_per_actor > cpus:
        raise StepError(f"an actor asks for {cpus_per_actor} CPU and the cluster has {cpus:g}: add nodes or CPUs")
    fitting = math.floor((cpus - 1) / cpus_per_actor) if cpus_per_actor else num_blocks
    # An actor without a GPU uses a whole core, even if it reserves less than one CPU.
    most = gpus / gpus_per_actor if gpus_per_actor else cpus
    fitting = min(fitting, math.floor(most))
    return max(1, min(fitting, num_blocks))


def on_ray(run: Run, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Run a function as a Ray task on the cluster of the run, and return its result. This process imports no torch.

    Raises:
        StepError: the function raised an exception.
    """
    connect(run.ray)
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ray.remote(num_cpus=1)(function).remote(*arguments, **options))
    except RayTaskError as err:
        raise StepError(f"the model cannot be made ready: {err.cause}") from err
