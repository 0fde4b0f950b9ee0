"""Per-item steps on Ray Data: a pool of actors computes blocks of pending items and commits their rows.

The driver holds only ids and small rows. Each block is one input partition of the dataset; an actor computes its rows,
appends them to their tables exactly once, and reports counts. If Ray runs a block again, its id is already in the log
of the table, and nothing is appended.
"""

import json
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tasks.running.actor import REPORT, BlockActor, BlockReport, Fatal
from tasks.running.cluster import connect, num_actors
from tasks.running.errors import RESUME, StepError, machine_lost
from tasks.running.run import Run, StepResult, added, lineage, report_progress
from tasks.running.work import Item, PerItemWork
from tasks.tables.delta import table_version

if TYPE_CHECKING:
    from ray.data import Dataset


def run_blocks(run: Run, work: PerItemWork[Item], items: Sequence[Item], num_done: int = 0) -> StepResult:
    """Compute all items on Ray and return the counts of committed rows. Without items Ray is not imported.

    Args:
        run: root of the tables, and address of Ray.
        work: the worker of the step and its resources.
        items: the pending items.
        num_done: number of items committed before, for the counts of the result.

    Raises:
        StepError: the step stopped (no disk space, no progress, a bug); the message has the cause.
    """
    if not items:
        return StepResult(step=work.step, num_in=num_done, num_done=num_done, note="nothing new")
    started = time.time()
    ray_start_s = connect(run.ray)
    blocks = split_blocks(items, work.block_size, work.max_block_bytes)
    size = min(num_actors(work.num_cpus, work.num_gpus, len(blocks)), work.max_actors or len(blocks))
    report_progress(work.step, 0, len(items))
    reports: list[BlockReport] = []
    for report in _stream(run, work, blocks, size):
        reports.append(report)
        report_progress(work.step, sum(report.num_items for report in reports), len(items))
    return _result(run, work.step, num_done, reports, started, ray_start_s)


def split_blocks(items: Sequence[Item], block_size: int, max_bytes: float = math.inf) -> list[list[Item]]:
    """Split items, in their order, into blocks of at most `block_size` items and `max_bytes` bytes.

    A larger item is a block of its own. The size of an item is its `size_bytes`; 0 without one.
    """
    blocks: list[list[Item]] = []
    room = 0.0
    for item in items:
        size_bytes = item.get("size_bytes")
        size = size_bytes if isinstance(size_bytes, int) else 0
        if not blocks or len(blocks[-1]) == block_size or size > room:
            blocks.append([])
            room = max_bytes
        blocks[-1].append(item)
        room -= size
    return blocks


def _stream(run: Run, work: PerItemWork[Item], blocks: list[list[Item]], size: int) -> Iterator[BlockReport]:
    """Yield the reports of blocks as they finish. size: number of actors.

    Raises:
        StepError: a worker failed, or no block finished in time.
    """
    import pyarrow as pa
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # One table for each block: Ray Data makes it a partition, and with `batch_size=None` an actor gets one at a time.
    tables = [pa.table({"items": [json.dumps(block)]}) for block in blocks]
    reports = ray.data.from_arrow(tables).map_batches(
        BlockActor,
        fn_constructor_args=(work, run.root, lineage(run, work.step, work.version, work.config), uuid.uuid4().hex),
        batch_size=None,
        compute=ActorPoolStrategy(size=size),
        num_cpus=work.num_cpus,
        num_gpus=work.num_gpus or None,
    )
    arrived: queue.Queue[BlockReport | Fatal | BaseException] = queue.Queue()
    threading.Thread(target=_drain, args=(reports, arrived), daemon=True).start()
    timeout_s = work.patience_s or run.ray.no_progress_timeout_s
    for _ in blocks:
        try:
            event = arrived.get(timeout=timeout_s)
        except queue.Empty:  # the actors stop with this driver
            raise StepError(
                f"step {work.step!r}: no block finished within {timeout_s:g} s (ray.no_progress_timeout_s): a block "
                f"may be too large, or the cluster may lack CPUs. {RESUME}"
            ) from None
        if isinstance(event, BaseException):
            raise StepError(f"step {work.step!r} stopped: {event}. {RESUME}", transient=machine_lost(event)) from event
        if isinstance(event, Fatal):
            message = f"step {work.step!r} stopped: {event.message}. {RESUME}{event.traceback}"
            raise StepError(message, transient=event.transient)
        yield event


def _drain(reports: "Dataset", arrived: "queue.Queue[BlockReport | Fatal | BaseException]") -> None:
    """Put reports into a queue, in its own thread: the iterator of Ray has no timeout. Returning stops the pipeline."""
    try:
        for row in reports.iter_rows():
            report = REPORT.validate_json(row["report"])
            arrived.put(report)
            if isinstance(report, Fatal):
                return
    except BaseException as err:
        arrived.put(err)


def _result(
    run: Run, step: str, num_done: int, reports: Sequence[BlockReport], started: float, ray_start_s: float
) -> StepResult:
    statuses = added(report.statuses for report in reports)
    rows = added(report.rows for report in reports)
    first, last = min(report.started for report in reports), max(report.finished for report in reports)
    times = {"ray_start_s": ray_start_s, "actors_start_s": first - started - ray_start_s, "drain_s": time.time() - last}
    return StepResult(
        step=step,
        num_in=num_done + sum(report.num_items for report in reports),
        num_done=num_done,
        num_ok=statuses.get("ok", 0),
        num_failed=statuses.get("failed", 0),
        num_skipped=statuses.get("skipped", 0),
        rows=rows,
        errors=added(report.errors for report in reports),
        versions={table: table_version(run.root, table) for table in rows},
        busy_s=covered_s([(report.started, report.finished) for report in reports]),
        timings=times | added(report.seconds for report in reports),
    )


def covered_s(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of (start, end) intervals, seconds."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
