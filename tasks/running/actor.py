"""The Ray actor of per-item steps: computes blocks of items with the worker of the step and commits their rows."""

import json
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from pyramid_model.config import Config
from tasks.running.errors import EXPECTED_ERRORS, StepError, machine_lost
from tasks.running.work import PerItemWork, Worker
from tasks.tables.appending import append_block
from tasks.tables.committed_ids import CommittedIds
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, Row
from tasks.tables.schemas import ID_COLUMNS


class BlockReport(Config):
    """Counts and times of one committed block."""

    num_items: int
    rows: dict[str, int]  # rows appended, by table
    statuses: dict[str, int]  # items by status
    errors: dict[str, int]  # failed and skipped items by error_type
    started: float  # time.time()
    finished: float  # time.time()
    seconds: dict[str, float]  # timings of the worker, by name


class Fatal(Config):
    """The error with which a worker stopped the step, as text: Ray Data would replace the exception by its own."""

    message: str
    transient: bool  # a machine or a connection was lost: the same step may succeed when it runs again
    traceback: str  # empty if the message alone says what to do


REPORT: TypeAdapter[BlockReport | Fatal] = TypeAdapter(BlockReport | Fatal)


class BlockActor:
    """Ray actor: builds the worker of the step once, then computes and commits one block after another.

    writer: 32 hex digits with which the names of all files of this call of the step begin.
    """

    def __init__(self, work: PerItemWork[Any], root: str, lineage: Lineage, writer: str):
        self.root, self.lineage, self.done_table = root, lineage, work.done_table
        self.others = {table: CommittedIds(table, version, writer) for table, version in work.since.items()}
        self.worker: Worker[Any] | None = None
        self.start_error: Fatal | None = None
        try:
            self.worker = work.worker()
        except Exception as err:  # reported with the first block: Ray reports an error here as a lost actor
            self.start_error = _fatal(err)

    def __call__(self, block: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Compute and commit one block, and return its report as JSON.

        block: a batch of one row; the column `items` has the items as JSON.
        """
        try:
            report = self.start_error or self._report(json.loads(block["items"][0]))
        except Exception as err:
            report = _fatal(err)
        return {"report": [report.model_dump_json()]}

    def _report(self, items: list[dict[str, object]]) -> BlockReport:
        assert self.worker is not None, "without a worker the start error is the report"
        started = time.time()
        produced = self.worker(items)
        done = produced.rows[self.done_table]
        others = {table: rows for table, rows in produced.rows.items() if table != self.done_table}
        appended = {table: self._append(table, rows) for table, rows in (others | {self.done_table: done}).items()}
        return BlockReport(
            num_items=len(items),
            rows=appended,
            statuses=Counter(str(row["status"]) for row in done),
            errors=Counter(str(row["error_type"]) for row in done if row["status"] != "ok"),
            started=started,
            finished=time.time(),
            seconds=dict(produced.seconds),
        )

    def _append(self, table: str, rows: Sequence[Row]) -> int:
        """Append rows; returns how many this call committed.

        A block is identified by its ids and attempts, so that a retry of failed rows is another block.
        """
        ids = sorted((row[ID_COLUMNS[table]], row["attempt"]) for row in rows)
        block_id = content_id(table, self.lineage.step, ids)
        return append_block(self.root, table, rows, block_id, self.lineage, self.others.get(table))


def _fatal(err: Exception) -> Fatal:
    """The exception of a worker as text; with its traceback, unless the message says what to do."""
    message = str(err) if isinstance(err, StepError) else f"{type(err).__name__}: {err}"
    trace = "" if isinstance(err, EXPECTED_ERRORS) else f"\n{traceback.format_exc()}"
    return Fatal(message=message, transient=machine_lost(err), traceback=trace)
