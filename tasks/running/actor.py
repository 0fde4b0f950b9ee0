"""The Ray actor under every per-item step: computes blocks with the step's worker and commits their rows."""

import json
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from pyramid_model.config import Config
from tasks.running.errors import TOLD, StepError, machine_lost
from tasks.running.work import PerItemWork, Row, Worker
from tasks.tables.appending import append_block
from tasks.tables.delta import Lineage, content_id
from tasks.tables.schemas import ID_COLUMNS


class BlockReport(Config):
    """Counts and times of one committed block."""

    num_items: int
    rows: dict[str, int]  # rows appended, by table
    statuses: dict[str, int]  # items by status
    errors: dict[str, int]  # failed and skipped items by error_type
    started: float  # time.time()
    finished: float
    seconds: dict[str, float]  # of the worker, by name


class Fatal(Config):
    """Why a worker stopped the step.

    Exceptions travel as text, since Ray Data keeps only its own wrapper of them.
    """

    message: str
    transient: bool  # a machine or a connection was lost: the same step may succeed when it runs again
    traceback: str  # empty where the message alone says what to do


REPORT: TypeAdapter[BlockReport | Fatal] = TypeAdapter(BlockReport | Fatal)


class BlockActor:
    """One Ray actor: builds the step's worker once, then computes and commits block after block."""

    def __init__(self, work: PerItemWork, root: str, lineage: Lineage):
        self.root, self.lineage, self.done_table = root, lineage, work.done_table
        self.worker: Worker | None = None
        self.broken: Fatal | None = None
        try:
            self.worker = work.worker(**work.worker_args)
        except Exception as err:  # told with the first block: an actor that dies here looks like a lost machine
            self.broken = _fatal(err)

    def __call__(self, block: Any) -> dict[str, list[str]]:
        """Compute and commit one block, a batch of one row with the items as JSON; returns its report as JSON."""
        try:
            report = self.broken or self._report(json.loads(block["items"][0]))
        except Exception as err:
            report = _fatal(err)
        return {"report": [report.model_dump_json()]}

    def _report(self, items: list[dict[str, Any]]) -> BlockReport:
        assert self.worker is not None, "a broken actor computes nothing"
        started = time.time()
        produced = self.worker(items)
        done = produced.rows[self.done_table]
        others = {table: rows for table, rows in produced.rows.items() if table != self.done_table}
        appended = {table: self._append(table, rows) for table, rows in (others | {self.done_table: done}).items()}
        return BlockReport(
            num_items=len(items),
            rows=appended,
            statuses=Counter(row["status"] for row in done),
            errors=Counter(row["error_type"] for row in done if row["status"] != "ok"),
            started=started,
            finished=time.time(),
            seconds=dict(produced.seconds),
        )

    def _append(self, table: str, rows: Sequence[Row]) -> int:
        """Rows committed by this call. A block is its ids and attempts, so a retry of failed rows is another block."""
        ids = sorted((row[ID_COLUMNS[table]], row["attempt"]) for row in rows)
        block_id = content_id(table, self.lineage.step, ids)
        return append_block(self.root, table, rows, block_id, self.lineage)


def _fatal(err: Exception) -> Fatal:
    """A worker's exception as text; with the traceback, unless the message says what to do."""
    message = str(err) if isinstance(err, StepError) else f"{type(err).__name__}: {err}"
    trace = "" if isinstance(err, TOLD) else f"\n{traceback.format_exc()}"
    return Fatal(message=message, transient=machine_lost(err), traceback=trace)
