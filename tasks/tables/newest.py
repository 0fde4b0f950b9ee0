"""The newest of several rows: the one that was committed last. Every reader of "the newest" row uses this module.

Rows are ordered by `ORDER`:

1. `commit_order`, one more than the version of the table from which the commit started (`append_block` writes it).
   It does not depend on clocks, which may be set back or differ between machines. Null comes first: a file from before
   the column existed.
2. Two commits that started from the same version have the same `commit_order`. Of these the higher `attempt` is newer,
   then the later `created_at`, then the greater `run_id`.
3. Of rows of one commit that are equal in all of these, the last one in the order of the table is the newest.

The newest row of an id is its newest attempt: attempt n + 1 is written after a read of attempt n, so its commit is
later.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.tables.rows import R, as_rows
from tasks.tables.text_hashes import may_repeat

ORDER = ("commit_order", "attempt", "created_at", "run_id")  # columns that rows must have to be ordered


def in_order(rows: pa.Table) -> pa.Table:
    """Rows from the first committed to the newest. rows: with the columns `ORDER`, in the order of the table."""
    return rows.take(_sorted_positions(rows))


def newest_first(rows: pa.Table) -> pa.Table:
    """Rows from the newest to the first committed. rows: with the columns `ORDER`, in the order of the table."""
    return rows.take(_sorted_positions(rows)[::-1])


def newest_row(rows: pa.Table, kind: type[R]) -> R | None:
    """The newest row; None if there are no rows.

    rows: with the columns `ORDER`, in the order of the table. kind: the type of its rows (`tasks.tables.rows`).
    """
    if not rows.num_rows:
        return None
    return as_rows(rows.slice(_sorted_positions(rows)[-1].as_py(), 1), kind)[0]


def newest_by(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The newest row of each key, in the order of the table.

    Args:
        rows: with the columns `ORDER` and `keys`, in the order of the table.
        keys: columns that together are the key; with the id column the result is the newest attempts.
    """
    names = list(keys)
    repeated = may_repeat(rows, names)  # most keys have one row: only the others are sorted and grouped
    if not repeated.any():
        return rows
    some = rows.select(list(dict.fromkeys([*names, *ORDER]))).filter(pa.array(repeated))
    positions = _sorted_positions(some)
    ordered = some.select(names).take(positions).append_column("position", positions)
    last = ordered.group_by(names, use_threads=False).aggregate([("position", "last")])
    is_newest = ~repeated
    is_newest[np.flatnonzero(repeated)[last["position_last"].to_numpy()]] = True
    return rows.filter(pa.array(is_newest))


def newest_ok_by(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The newest row of each key whose newest row is ok, in the order of the table.

    A newer failed or skipped row means that the key has no value now: the ok rows before it no longer count. Therefore
    `rows` must include the rows that are not ok; a filter by status before this call would bring old values back.

    Args:
        rows: with the columns `status`, `ORDER` and `keys`, in the order of the table.
        keys: columns that together are the key.
    """
    newest = newest_by(rows, keys)
    is_ok = pc.fill_null(pc.equal(newest["status"], "ok"), False)
    return newest if pc.all(is_ok).as_py() else newest.filter(is_ok)


def _sorted_positions(rows: pa.Table) -> pa.Array:
    """Positions in `rows` from the first committed to the newest; equal rows keep their order."""
    ordered_by = rows.select(list(ORDER))
    ordered_by = ordered_by.set_column(0, "commit_order", pc.fill_null(ordered_by["commit_order"], -1))
    return pc.sort_indices(ordered_by, sort_keys=[(name, "ascending") for name in ORDER])
