"""What came between two versions of a table: ids, statuses and columns; verdicts and scores in their own words."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import: pyright sees none of them.

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.inspecting.table_stats import Histogram, counts_within, histogram, summary
from tasks.tables.delta import read_table
from tasks.tables.manifest import verdicts_of
from tasks.tables.newest import ORDER, newest_by
from tasks.tables.schemas import BLOB_COLUMNS, ID_COLUMNS, SCHEMAS


@dataclass(frozen=True)
class TableDiff:
    """What came between two versions of a table."""

    added: list[str]
    removed: list[str]
    status_changes: list[tuple[str, str, str]]  # id, before, after
    columns: dict[str, tuple[str, str]] = field(default_factory=dict)  # summary before, summary after


def diff(root: str, table: str, before: int, after: int) -> TableDiff:
    """Ids added and gone, rows whose status changed, and columns whose summary changed.

    Raises:
        TableError: a version does not exist.
    """
    names = [name for name in SCHEMAS[table].names if name not in BLOB_COLUMNS.get(table, ())]
    old, new = (read_table(root, table, names, version) for version in (before, after))
    old_status, new_status = (dict(zip(*_pair(rows, ID_COLUMNS[table]), strict=True)) for rows in (old, new))
    changes = [
        (row_id, old_status[row_id], status)
        for row_id, status in new_status.items()
        if row_id in old_status and old_status[row_id] != status
    ]
    summaries = {name: (summary(old[name]), summary(new[name])) for name in names}
    return TableDiff(
        [row_id for row_id in new_status if row_id not in old_status],
        [row_id for row_id in old_status if row_id not in new_status],
        changes,
        {name: pair for name, pair in summaries.items() if pair[0] != pair[1]},
    )


def _pair(rows: pa.Table, id_column: str) -> tuple[list, list]:
    return rows[id_column].to_pylist(), rows["status"].to_pylist()


@dataclass(frozen=True)
class SelectionDiff:
    """How the newest selection of one version judges otherwise than that of another."""

    same_settings: bool
    num_kept: tuple[int, int]  # before, after
    num_judged: tuple[int, int]
    newly_kept: dict[str, list[str]]  # clip ids by what had dropped them before; "new clip" where nothing had
    newly_dropped: dict[str, list[str]]  # clip ids by what drops them now; "no longer judged" where nothing does
    num_moved: int  # clips kept by both, in another split or bucket


def selection_diff(root: str, before: int, after: int) -> SelectionDiff:
    """Clips that are newly kept and newly dropped, by every reason that they had or have.

    Raises:
        TableError: a version does not exist.
    """
    tables = [verdicts_of(root, version=version) for version in (before, after)]
    settings = [table["params_hash"].unique().to_pylist() for table in tables]
    old, new = ({row["clip_id"]: row for row in _verdicts(table)} for table in tables)
    num_kept = [sum(row["keep"] for row in rows.values()) for rows in (old, new)]
    moved = [
        clip_id
        for clip_id, row in new.items()
        if row["keep"] and (was := old.get(clip_id)) and was["keep"] and _place(was) != _place(row)
    ]
    return SelectionDiff(
        settings[0] == settings[1],
        (num_kept[0], num_kept[1]),
        (len(old), len(new)),
        _came(new, old, "new clip"),
        _came(old, new, "no longer judged"),
        len(moved),
    )


def _verdicts(table: pa.Table) -> list[dict]:
    rows = table.select(["clip_id", "keep", "drop_reasons", "bucket", "split"]).to_pylist()
    return [row for row in rows if row["drop_reasons"] != ["not_current"]]


def _place(row: dict) -> tuple[str, str]:
    return row["bucket"], row["split"]


def _came(kept: dict[str, dict], other: dict[str, dict], unknown: str) -> dict[str, list[str]]:
    """Clips that `kept` keeps and `other` does not, by the reasons of `other`, the most frequent first."""
    found: dict[str, list[str]] = {}
    for clip_id, row in kept.items():
        if row["keep"] and not (clip_id in other and other[clip_id]["keep"]):
            for reason in other[clip_id]["drop_reasons"] if clip_id in other else [unknown]:
                found.setdefault(reason, []).append(clip_id)
    return dict(sorted(found.items(), key=lambda one: -len(one[1])))


@dataclass(frozen=True)
class ScoreShift:
    """The values of one scorer at two versions, binned alike; None where there are none."""

    scorer: str
    before: Histogram | None
    after: Histogram | None
    medians: tuple[float, float]  # NaN where there are no values
    num_changed: int  # clips that have another value now
    distance: float  # between the two distributions, 0 (equal) to 1 (apart): Kolmogorov-Smirnov


def score_shifts(root: str, before: int, after: int) -> list[ScoreShift]:
    """One a scorer whose values are not the same at both versions.

    Raises:
        TableError: a version does not exist.
    """
    old, new = (_values(root, version) for version in (before, after))
    shifts = []
    for scorer in sorted({*old, *new}):
        was, now = old.get(scorer, {}), new.get(scorer, {})
        if was != now:
            changed = sum(clip_id in was and was[clip_id] != value for clip_id, value in now.items())
            shifts.append(_shift(scorer, np.array([*was.values()]), np.array([*now.values()]), changed))
    return shifts


def _values(root: str, version: int) -> dict[str, dict[str, float]]:
    """Scorer -> clip id -> its newest value that is a number."""
    ok = pc.field("status") == "ok"
    rows = read_table(root, "scores", ["clip_id", "scorer", "value", *ORDER], version, ok)
    rows = newest_by(rows, ["clip_id", "scorer"])
    rows = rows.filter(pc.fill_null(pc.is_finite(rows["value"]), False))
    found: dict[str, dict[str, float]] = {}
    for clip_id, scorer, value in zip(*(rows[name].to_pylist() for name in rows.column_names[:3]), strict=True):
        found.setdefault(scorer, {})[clip_id] = value
    return found


def _shift(scorer: str, old: np.ndarray, new: np.ndarray, num_changed: int) -> ScoreShift:
    both = np.sort(np.concatenate([old, new]))
    whole = histogram(scorer, both)
    assert whole is not None, "a scorer without values at either version has no shift"
    before, after = (_binned(scorer, values, whole.edges) for values in (old, new))
    medians = [float(np.median(values)) if len(values) else float("nan") for values in (old, new)]
    distance = 1.0
    if len(old) and len(new):
        shares = [np.searchsorted(np.sort(values), both, side="right") / len(values) for values in (old, new)]
        distance = float(np.abs(shares[0] - shares[1]).max())
    return ScoreShift(scorer, before, after, (medians[0], medians[1]), num_changed, distance)


def _binned(scorer: str, values: np.ndarray, edges: list[float]) -> Histogram | None:
    return Histogram(scorer, edges, counts_within(values, edges), float(values.mean())) if len(values) else None
