"""Ray Data under every per-clip step: blocks of pending items through a pool of actors that commit what they compute.

The driver holds only ids and small rows. Each block is one input partition of the dataset; an actor computes its rows,
appends them to their tables exactly once, and reports counts. If Ray runs a block again, its id is already in the log.
"""

import contextlib
import json
import logging
import math
import os
import queue
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyramid_model.config import Config
from tasks.running.errors import RESUME, TOLD, StepError, machine_lost
from tasks.running.run import RayConfig, Run, StepResult, lineage, report_progress
from tasks.tables.appending import append_block
from tasks.tables.delta import Lineage, content_id, table_version
from tasks.tables.schemas import ID_COLUMNS

START_TRIES = 3


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


class BlockActor:
    """One Ray actor: builds the step's worker once, then computes and commits block after block."""

    def __init__(self, worker: type, worker_args: Mapping[str, Any], root: str, rows_lineage: Lineage):
        self.root = root
        self.lineage = rows_lineage
        self.broken: dict[str, Any] | None = None
        try:
            self.worker = worker(**worker_args)
        except Exception as err:  # told with the first block: an actor that dies here looks like a lost machine
            self.broken = _fatal(err)

    def __call__(self, block: Any) -> dict[str, list]:
        """Compute and commit one block; its counts as one JSON row.

        A worker's exception travels as text in the report, since Ray Data keeps only its own wrapper of it.
        """
        if self.broken:
            return {"report": [json.dumps(self.broken)]}
        started = time.time()
        items = json.loads(block["items"][0])
        try:
            produced = self.worker(items)
            appended = {table: self._append(table, rows) for table, rows in produced.items()}
        except Exception as err:
            return {"report": [json.dumps(_fatal(err))]}
        last = produced[next(reversed(produced))]
        report = {
            "items": len(items),
            "rows": appended,
            "statuses": Counter(row["status"] for row in last),
            "errors": Counter(row["error_type"] for row in last if row["status"] != "ok"),
            "started": started,
            "finished": time.time(),
            "spent": self.worker.spent() if hasattr(self.worker, "spent") else {},
        }
        return {"report": [json.dumps(report)]}

    def _append(self, table: str, rows: Sequence[Mapping[str, Any]]) -> int:
        """Rows committed by this call. A block is its ids and attempts, so a retry of failed rows is another block."""
        ids = sorted((row[ID_COLUMNS[table]], row["attempt"]) for row in rows)
        block_id = content_id(table, self.lineage.step, ids)
        return append_block(self.root, table, rows, block_id, self.lineage)


def _fatal(err: Exception) -> dict[str, Any]:
    """A worker's exception as a report; with the traceback, unless the sentence alone says what to do."""
    text = str(err) if isinstance(err, StepError) else f"{type(err).__name__}: {err}"
    trace = "" if isinstance(err, TOLD) else f"\n{traceback.format_exc()}"
    return {"fatal": text, "transient": machine_lost(err), "traceback": trace}


def run_blocks(
    run: Run,
    config: Config,
    *,
    step: str,
    step_version: str,
    items: Sequence[Mapping[str, Any]],
    worker: type,
    worker_args: Mapping[str, Any],
    num_done: int = 0,
    block_size: int = 16,
    max_block_bytes: float = math.inf,
    num_cpus: float = 0.5,
    num_gpus: float = 0.0,
    max_actors: int | None = None,
    patience_s: float | None = None,
) -> StepResult:
    """Run `worker` over the pending items on Ray and return what was committed.

    Args:
        items: JSON-able dicts, one an input; each carries its `attempt`.
        worker: class, built once per actor as `worker(**worker_args)`, then called with a list of items; returns rows
            by table in the order in which they must be committed. The last table is the one whose row per item says
            that the item is done: its statuses are counted. If it has a method `spent`, the seconds by name that this
            gives after each block are added up in the result's timings.
        num_done: inputs already committed, for the counts of the result.
        block_size: items a block, the unit of commit and of loss when a machine dies.
        max_block_bytes: most of the items' `size_bytes` in one block; a larger item is a block of its own.
        max_actors: most actors, where they share something scarcer than this cluster; None: as many as fit.
        patience_s: stop when no block has finished for so long; None: `ray.no_progress_timeout_s`.

    Raises:
        StepError: the step stopped (no disk space, no progress, a bug), with the cause.
    """
    if not items:
        return StepResult(step=step, num_in=num_done, num_done=num_done, note="nothing new")
    started = time.time()
    ray_start_s = connect(run.ray)
    blocks = split_blocks(items, block_size, max_block_bytes)
    actor_args = (worker, dict(worker_args), run.root, lineage(run, step, step_version, config))
    reports = []
    done = 0
    report_progress(step, 0, len(items))
    size = min(num_actors(num_cpus, num_gpus, len(blocks)), max_actors or len(blocks))
    patience_s = patience_s or run.ray.no_progress_timeout_s
    for report in _stream(blocks, actor_args, size, num_cpus, num_gpus, patience_s, step):
        reports.append(report)
        done += report["items"]
        report_progress(step, done, len(items))
    return _result(run, step, num_done, reports, started, ray_start_s)


def split_blocks(items: Sequence[Mapping[str, Any]], block_size: int, max_bytes: float = math.inf) -> list[list]:
    """Items in their order, in blocks of at most so many items and bytes; a larger item is a block of its own."""
    blocks: list[list] = []
    room = 0.0
    for item in items:
        size = item.get("size_bytes") or 0
        if not blocks or len(blocks[-1]) == block_size or size > room:
            blocks.append([])
            room = max_bytes
        blocks[-1].append(item)
        room -= size
    return blocks


def _stream(
    blocks: list[list], actor_args: tuple, size: int, num_cpus: float, num_gpus: float, timeout_s: float, step: str
) -> Iterator[dict]:
    """Reports of finished blocks as they come; StepError when none comes for too long."""
    import pyarrow as pa
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # One table a block: Ray Data keeps each as its own partition, so `batch_size=None` hands an actor exactly one.
    tables = [pa.table({"items": [json.dumps(block)]}) for block in blocks]
    reports = ray.data.from_arrow(tables).map_batches(
        BlockActor,
        fn_constructor_args=actor_args,
        batch_size=None,
        compute=ActorPoolStrategy(size=size),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )
    arrived: queue.Queue = queue.Queue()
    threading.Thread(target=_drain, args=(reports, arrived), daemon=True).start()
    for _ in blocks:
        try:
            event = arrived.get(timeout=timeout_s)
        except queue.Empty:  # the actors end with this driver
            raise StepError(
                f"step {step!r}: no block finished within {timeout_s:g} s (ray.no_progress_timeout_s): a block may be "
                f"too large, or the cluster short of CPUs. {RESUME}"
            ) from None
        if isinstance(event, BaseException):
            raise StepError(f"step {step!r} stopped: {event}. {RESUME}", transient=machine_lost(event)) from event
        if "fatal" in event:
            message = f"step {step!r} stopped: {event['fatal']}. {RESUME}{event['traceback']}"
            raise StepError(message, transient=event["transient"])
        yield event


def _drain(reports: Any, arrived: queue.Queue) -> None:
    """Pull results in a thread of its own, since Ray's iterator cannot be given a timeout; leaving it ends the run."""
    try:
        for row in reports.iter_rows():
            report = json.loads(row["report"])
            arrived.put(report)
            if "fatal" in report:
                return
    except BaseException as err:
        arrived.put(err)


def _result(run: Run, step: str, num_done: int, reports: list[dict], started: float, ray_start_s: float) -> StepResult:
    statuses, errors, rows, spent = Counter(), Counter(), Counter(), Counter()
    for report in reports:
        statuses.update(report["statuses"])
        errors.update(report["errors"])
        rows.update(report["rows"])
        spent.update(report["spent"])
    intervals = [(report["started"], report["finished"]) for report in reports]
    first, last = min(begin for begin, _ in intervals), max(end for _, end in intervals)
    return StepResult(
        step=step,
        num_in=num_done + sum(report["items"] for report in reports),
        num_done=num_done,
        num_ok=statuses["ok"],
        num_failed=statuses["failed"],
        num_skipped=statuses["skipped"],
        rows=dict(rows),
        errors=dict(errors),
        versions={table: table_version(run.root, table) for table in rows},
        busy_s=covered_s(intervals),
        timings={
            "ray_start_s": ray_start_s,
            "actors_start_s": first - started - ray_start_s,
            "drain_s": time.time() - last,
        }
        | dict(spent),
    )


def covered_s(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of (start, end) intervals, seconds."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def on_ray(run: Run, function: Any, *arguments: Any) -> Any:
    """Run a function as a Ray task: this process stays free of torch, and a cluster does the work."""
    connect(run.ray)
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ray.remote(num_cpus=1)(function).remote(*arguments))
    except RayTaskError as err:
        raise StepError(f"the model cannot be made ready: {err.cause}") from err
