"""Figures of one table: counts by status and error, summaries, histograms, labels, drop reasons."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyramid_model.metrics.facts import SCORER_FACTS
from tasks.tables.delta import as_dataset, open_table, read_table
from tasks.tables.drop_reasons import LATER_RULES, LIMIT_SUFFIXES, OUTER_SET, limit_suffix
from tasks.tables.newest import ORDER, newest_ok_by
from tasks.tables.schemas import CLIP_FIGURES, COMMON, SCHEMAS

SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Histogram:
    """Counts of a number in equal bins; `edges` has one entry more than `counts`."""

    name: str
    edges: list[float]
    counts: list[int]
    mean: float

    @property
    def spark(self) -> str:
        """The counts as one line of characters, higher bars for larger counts; an empty bin is a space."""
        top = max(self.counts)
        return "".join(SPARKS[-(-count * len(SPARKS) // top) - 1] if count else " " for count in self.counts)


def histogram(name: str, values: Sequence[float] | np.ndarray, num_bins: int = 24) -> Histogram | None:
    """Bins of equal width from the least to the greatest value; one bin when all are equal; None without values."""
    if not len(values):
        return None
    low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        return Histogram(name, [low, high], [len(values)], low)
    edges = [low + (high - low) * i / num_bins for i in range(num_bins)] + [high]
    return Histogram(name, edges, counts_within(values, edges), float(np.mean(values)))


def counts_within(values: Sequence[float] | np.ndarray, edges: Sequence[float]) -> list[int]:
    """Number of values in each bin of a histogram; the last bin includes its upper edge."""
    if edges[0] == edges[-1]:
        return [len(values)]
    return np.histogram(np.asarray(values, np.float64), edges)[0].tolist()


def histograms(root: str, table: str, version: int | None = None) -> list[Histogram]:
    """A histogram for each numeric column of the ok rows; for `scores`, one for each scorer."""
    names = [
        field.name
        for field in SCHEMAS[table]
        if field.name not in COMMON and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
    ]
    extra = ["scorer"] if table == "scores" else []
    rows = read_table(root, table, [*names, *extra], version, pc.field("status") == "ok")
    if table == "scores":
        by_scorer = {name: rows.filter(pc.equal(rows["scorer"], name)) for name in _sorted_values(rows["scorer"])}
        columns = {name: part["value"] for name, part in by_scorer.items()}
    else:
        columns = {name: rows[name] for name in names if name != "crc32"}
    drawn = (histogram(name, finite_values(column)) for name, column in columns.items())
    return [item for item in drawn if item is not None]


def _sorted_values(column: pa.ChunkedArray) -> list[str]:
    return sorted(pc.unique(column.drop_null()).to_pylist())


def finite_values(column: pa.ChunkedArray) -> np.ndarray:
    """Values without null, NaN and infinity."""
    return column.filter(pc.fill_null(pc.is_finite(column), False)).to_numpy()


def labels(root: str, version: int | None = None) -> dict[str, dict[str, str]]:
    """Scorer -> clip id -> label, for scorers whose details have a `label`, such as the motion of the camera."""
    delta = open_table(root, "scores", version)
    if delta is None:
        return {}
    # Details without a label become null while the files are read: they are never in memory together.
    details = pc.field("details")
    labelled = pc.if_else(pc.match_substring(details, '"label"'), details, pa.scalar(None, pa.string()))
    columns = {name: pc.field(name) for name in ("clip_id", "scorer", "status", *ORDER)}
    rows = as_dataset(delta, "scores").to_table(columns=columns | {"details": labelled})
    rows = newest_ok_by(rows, ["clip_id", "scorer"]).filter(pc.field("details").is_valid())
    by_scorer: dict[str, dict[str, str]] = {}
    for row in rows.select(["clip_id", "scorer", "details"]).to_pylist():
        if (label := json.loads(row["details"]).get("label")) is not None:
            by_scorer.setdefault(row["scorer"], {})[row["clip_id"]] = str(label)
    return by_scorer


def score_label(name: str) -> str:
    """Meaning of a score or a figure of the clip, and which values are better; "" for scorers that a recipe defines."""
    facts = SCORER_FACTS.get(name)
    if facts is None:
        return CLIP_FIGURES.get(name, "")
    return f"{facts.axis}; {facts.direction}" if facts.direction else facts.axis


def status_counts(root: str, table: str, version: int | None = None) -> Counter[tuple[str, str]]:
    """(status, error_type) -> number of newest rows."""
    rows = read_table(root, table, ["status", "error_type"], version)
    return Counter(zip(rows["status"].to_pylist(), rows["error_type"].to_pylist(), strict=True))


@dataclass(frozen=True)
class DropReason:
    """Numbers of clips that one rule of a selection drops."""

    reason: str
    alone: int  # clips that the rule drops, whatever other rules do
    in_order: int  # of these, clips that no earlier rule drops
    only: int  # of these, clips that no other rule drops


def reason_counts(lists: Sequence[Sequence[str]]) -> list[DropReason]:
    """Clips that each rule drops. lists: drop reasons of each clip, in the order of the rules."""
    alone = Counter(reason for reasons in lists for reason in reasons)
    first = Counter(reasons[0] for reasons in lists if reasons)
    only = Counter(reasons[0] for reasons in lists if len(reasons) == 1)
    return [DropReason(reason, alone[reason], first[reason], only[reason]) for reason in _rule_order(lists)]


def _rule_order(lists: Sequence[Sequence[str]]) -> list[str]:
    """All reasons, in an order that agrees with the order in every list.

    The limits of one score stay together. Where the lists leave the order open: limits, other rules, quotas.
    """
    by_group: dict[str, set[str]] = {}
    followers: dict[str, set[str]] = {}
    for reasons in lists:
        for reason in reasons:
            by_group.setdefault(_group(reason), set()).add(reason)
            followers.setdefault(_group(reason), set())
        for earlier, later in itertools.pairwise(map(_group, reasons)):
            if earlier != later:
                followers[earlier].add(later)
    followers = {name: followers[name] for name in sorted(followers, key=_usual_place)}
    ordered: list[str] = []
    while followers:
        first = [name for name in followers if not any(name in later for later in followers.values())]
        name = first[0] if first else next(iter(followers))
        followers.pop(name)
        ordered += sorted(by_group[name], key=lambda reason: ("", *LIMIT_SUFFIXES).index(limit_suffix(reason)))
    return ordered


def _group(reason: str) -> str:
    """The score, for a reason that is a limit on one; otherwise the reason itself."""
    return reason.removesuffix(limit_suffix(reason))


def _usual_place(group: str) -> int:
    """Sort key: rules of the outer set, then limits on scores, then LATER_RULES."""
    if group.startswith(OUTER_SET):
        return -1
    return 1 + LATER_RULES.index(group) if group in LATER_RULES else 0


def summary(column: pa.ChunkedArray) -> str:
    """A column in one phrase: range and mean of numbers; counts of up to four texts, or the number of texts."""
    values = column.drop_null()
    if not len(values):
        return "empty"
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        low, high, mean = (compact(f(values).as_py()) for f in (pc.min, pc.max, pc.mean))
        return low if low == high else f"{low} … {high}, mean {mean}"
    if pa.types.is_timestamp(column.type):
        return f"to {pc.max(values).as_py():%Y-%m-%d %H:%M:%S}"
    if pa.types.is_list(column.type):
        return f"{len(values)} lists, {len(pc.list_flatten(values))} entries"
    counts = Counter(values.to_pylist()).most_common()
    if len(counts) > 4:
        return f"{len(counts)} values"
    return ", ".join(f"{value if value != '' else '(empty)'}: {count}" for value, count in counts)


def compact(number: float) -> str:
    """A number as text: integers in full, other numbers with four digits."""
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:,.4g}" if abs(number) < 10_000 else f"{number:,.0f}"


def file_size(num_bytes: int) -> str:
    """A number of bytes as text, in powers of ten: 950 B, 12.3 kB, 4.5 MB."""
    size, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
