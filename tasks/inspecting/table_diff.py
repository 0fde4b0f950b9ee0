"""Differences between two versions of a table: ids, statuses and columns; also verdicts and values of scores."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.inspecting.table_stats import Histogram, counts_within, histogram, summary
from tasks.tables.delta import read_table
from tasks.tables.drop_reasons import NOT_CURRENT
from tasks.tables.manifest import verdicts_of
from tasks.tables.newest import ORDER, newest_ok_by
from tasks.tables.schemas import BLOB_COLUMNS, ID_COLUMNS, SCHEMAS


@dataclass(frozen=True)
class TableDiff:
    """Differences between two versions of a table."""

    added: list[str]
    removed: list[str]
    status_changes: list[tuple[str, str, str]]  # id, before, after
    columns: dict[str, tuple[str, str]] = field(default_factory=dict)  # summary before, summary after


def diff(root: str, table: str, before: int, after: int) -> TableDiff:
    """Ids added and removed, rows whose status changed, and columns whose summary changed.

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


def _pair(rows: pa.Table, id_column: str) -> tuple[list[str], list[str]]:
    return rows[id_column].to_pylist(), rows["status"].to_pylist()


@dataclass(frozen=True)
class SelectionDiff:
    """Differences between the newest selections of two versions of the table."""

    same_settings: bool
    num_kept: tuple[int, int]  # before, after
    num_judged: tuple[int, int]
    newly_kept: dict[str, list[str]]  # reason they were dropped for before, or "new clip" -> clip ids
    newly_dropped: dict[str, list[str]]  # reason they are dropped for now, or "no longer judged" -> clip ids
    num_moved: int  # clips that both keep, in different splits or buckets


def selection_diff(root: str, before: int, after: int) -> SelectionDiff:
    """Clips that only one of the selections keeps, by each of their drop reasons in the other one.

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
        if row["keep"] and (before_row := old.get(clip_id)) and before_row["keep"] and _place(before_row) != _place(row)
    ]
    return SelectionDiff(
        settings[0] == settings[1],
        (num_kept[0], num_kept[1]),
        (len(old), len(new)),
        _kept_by_first(new, old, "new clip"),
        _kept_by_first(old, new, "no longer judged"),
        len(moved),
    )


class _Verdict(TypedDict):
    clip_id: str
    keep: bool
    drop_reasons: list[str]
    bucket: str
    split: str


def _verdicts(table: pa.Table) -> list[_Verdict]:
    rows = cast("list[_Verdict]", table.select(list(_Verdict.__annotations__)).to_pylist())
    return [row for row in rows if row["drop_reasons"] != [NOT_CURRENT]]


def _place(row: _Verdict) -> tuple[str, str]:
    return row["bucket"], row["split"]


def _kept_by_first(
    first: Mapping[str, _Verdict], second: Mapping[str, _Verdict], not_judged: str
) -> dict[str, list[str]]:
    """Reason -> clips that `first` keeps and `second` drops for it; the most frequent reason first.

    not_judged: the reason for clips that `second` has not judged.
    """
    by_reason: dict[str, list[str]] = {}
    for clip_id, row in first.items():
        if row["keep"] and not (clip_id in second and second[clip_id]["keep"]):
            for reason in second[clip_id]["drop_reasons"] if clip_id in second else [not_judged]:
                by_reason.setdefault(reason, []).append(clip_id)
    return dict(sorted(by_reason.items(), key=lambda pair: -len(pair[1])))


@dataclass(frozen=True)
class ScoreShift:
    """Values of one scorer at two versions, as histograms with the same bins; None: no values at that version."""

    scorer: str
    before: Histogram | None
    after: Histogram | None
    medians: tuple[float, float]  # NaN where there are no values
    num_changed: int  # clips whose value differs
    distance: float  # Kolmogorov-Smirnov distance of the distributions, 0 (equal) to 1 (disjoint)


def score_shifts(root: str, before: int, after: int) -> list[ScoreShift]:
    """A comparison for each scorer whose values differ between the versions.

    Raises:
        TableError: a version does not exist.
    """
    old, new = (_values(root, version) for version in (before, after))
    shifts = []
    for scorer in sorted({*old, *new}):
        values_before, values_after = old.get(scorer, {}), new.get(scorer, {})
        if values_before != values_after:
            num_changed = sum(values_before.get(clip_id, value) != value for clip_id, value in values_after.items())
            before_after = np.array([*values_before.values()]), np.array([*values_after.values()])
            shifts.append(_shift(scorer, *before_after, num_changed))
    return shifts


def _values(root: str, version: int) -> dict[str, dict[str, float]]:
    """Scorer -> clip id -> value, of the newest rows that are ok and have a finite value."""
    rows = read_table(root, "scores", ["clip_id", "scorer", "value", "status", *ORDER], version)
    rows = newest_ok_by(rows, ["clip_id", "scorer"])
    rows = rows.filter(pc.fill_null(pc.is_finite(rows["value"]), False))
    by_scorer: dict[str, dict[str, float]] = {}
    for clip_id, scorer, value in zip(*(rows[name].to_pylist() for name in rows.column_names[:3]), strict=True):
        by_scorer.setdefault(scorer, {})[clip_id] = value
    return by_scorer


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
