"""Pending items of a step: ids that have no committed row."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc

from tasks.tables.delta import read_table, table_version
from tasks.tables.schemas import ID_COLUMNS

Item = TypeVar("Item", bound=Mapping[str, object])  # a TypedDict


@dataclass(frozen=True)
class Pending:
    """Pending ids with the attempt to write, and the number of ids that are done."""

    attempts: dict[str, int]
    num_done: int
    version: int  # of the table that was read; -1: it was not written yet

    def items(self, all_items: Iterable[Item], id_column: str) -> list[Item]:
        """The items that are pending, each with the attempt to write as its `attempt`."""
        attempts = ((item, self.attempts.get(str(item[id_column]))) for item in all_items)
        return [cast("Item", {**item, "attempt": attempt}) for item, attempt in attempts if attempt is not None]


def pending(
    root: str, table: str, ids: Iterable[str], retry_failed: bool = False, where: pc.Expression | None = None
) -> Pending:
    """Anti-join: ids without a committed row; with `retry_failed` also those whose newest row failed.

    where: a condition on fixed columns that all rows of the ids meet; for many ids it is faster than a search by id.
    """
    version, id_column = table_version(root, table), ID_COLUMNS[table]
    ids = list(dict.fromkeys(ids))
    requested = pa.array(ids, pa.string())
    of_ids = pc.field(id_column).isin(requested) if where is None else where
    rows = read_table(root, table, [id_column, "status", "attempt"], version, of_ids)
    failed = rows.filter(pc.field("status") == "failed") if retry_failed else rows.slice(0, 0)
    failed = failed.filter(pc.is_in(failed[id_column], value_set=requested))
    again = dict(zip(failed[id_column].to_pylist(), failed["attempt"].to_pylist(), strict=True))
    committed = pc.is_in(requested, value_set=rows[id_column].combine_chunks())
    new = dict.fromkeys(requested.filter(pc.invert(committed)).to_pylist(), 1)
    attempts = new | {row_id: attempt + 1 for row_id, attempt in again.items()}
    return Pending(attempts, len(ids) - len(attempts), version)
