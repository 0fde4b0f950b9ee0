"""Pending items of a step: ids that have no committed row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from tasks.tables.delta import read_table
from tasks.tables.schemas import ID_COLUMNS

Item = TypeVar("Item", bound=Mapping[str, object])  # a TypedDict


@dataclass(frozen=True)
class Pending:
    """Pending ids with the attempt to write, and the number of ids that are done."""

    attempts: dict[str, int]
    num_done: int

    def items(self, all_items: Iterable[Item], id_column: str) -> list[Item]:
        """The items that are pending, each with the attempt to write as its `attempt`."""
        attempts = ((item, self.attempts.get(str(item[id_column]))) for item in all_items)
        return [cast("Item", {**item, "attempt": attempt}) for item, attempt in attempts if attempt is not None]


def pending(root: str, table: str, ids: Iterable[str], retry_failed: bool = False) -> Pending:
    """Anti-join: ids without a committed row; with `retry_failed` also those whose latest row failed."""
    rows = read_table(root, table, [ID_COLUMNS[table], "status", "attempt"])
    committed = {
        row_id: (status, attempt)
        for row_id, status, attempt in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True)
    }
    ids = list(dict.fromkeys(ids))
    attempts: dict[str, int] = {}
    for row_id in ids:
        status, attempt = committed.get(row_id, ("", 0))
        if not status or (retry_failed and status == "failed"):
            attempts[row_id] = attempt + 1
    return Pending(attempts, len(ids) - len(attempts))
