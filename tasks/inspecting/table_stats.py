"""What is in a table, in figures: counts by status and error, summaries, histograms, labels, drop reasons."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import: pyright sees none of them.

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
from tasks.tables.newest import ORDER, newest_by
from tasks.tables.schemas import CLIP_FIGURES, COMMON, SCHEMAS

SPARKS = "▁▂▃▄▅▆▇█"
SIDES = ("", "_missing", "_low", "_high")  # what a limit on a score may find
OUTER_SET = "not_in_"
LATER_RULES = (  # behind all limits on scores, in this order
    *("too_few_frames", "too_short", "too_small", "straddles_splits", "pins_conflict"),
    *("duplicate_exact", "duplicate_phash", "duplicate_semantic"),
    *("over_max_per_video", "source_left_out", "over_source_share", "over_max_clips"),
)


@dataclass(frozen=True)
class Histogram:
    """Counts of a number in equal bins; `edges` has one entry more than `counts`."""

    name: str
    edges: list[float]
    counts: list[int]
    mean: float

    @property
    def spark(self) -> str:
        """The counts as one line of bars; an empty bin is a space."""
        top = max(self.counts)
        return "".join(SPARKS[-(-count * len(SPARKS) // top) - 1] if count else " " for count in self.counts)


def histogram(name: str, values: Sequence[float] | np.ndarray, num_bins: int = 24) -> Histogram | None:
    """Equal-width bins from the least to the greatest value (one bin when all are equal); None for no values."""
    if not len(values):
        return None
    low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        return Histogram(name, [low, high], [len(values)], low)
    edges = [low + (high - low) * i / num_bins for i in range(num_bins)] + [high]
    return Histogram(name, edges, counts_within(values, edges), float(np.mean(values)))


def counts_within(values: Sequence[float] | np.ndarray, edges: Sequence[float]) -> list[int]:
    """How many values lie in each bin of a histogram; the last bin holds its upper edge too."""
    if edges[0] == edges[-1]:
        return [len(values)]
    return np.histogram(np.asarray(values, np.float64), edges)[0].tolist()


def histograms(root: str, table: str, version: int | None = None) -> list[Histogram]:
    """One a numeric column of the table's ok rows; for `scores` one a scorer."""
    own = [
        field.name
        for field in SCHEMAS[table]
        if field.name not in COMMON and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
    ]
    extra = ["scorer"] if table == "scores" else []
    rows = read_table(root, table, [*own, *extra], version, pc.field("status") == "ok")
    if table == "scores":
        by_scorer = {name: rows.filter(pc.equal(rows["scorer"], name)) for name in _sorted_values(rows["scorer"])}
        found = [histogram(name, finite_values(part["value"])) for name, part in by_scorer.items()]
    else:
        found = [histogram(name, finite_values(rows[name])) for name in own if name != "crc32"]
    return [one for one in found if one is not None]


def _sorted_values(column: pa.ChunkedArray) -> list[str]:
    return sorted(pc.unique(column.drop_null()).to_pylist())


def finite_values(column: pa.ChunkedArray) -> np.ndarray:
    """Values that can be drawn: no null, no NaN, no infinity."""
    return column.filter(pc.fill_null(pc.is_finite(column), False)).to_numpy()


def labels(root: str, version: int | None = None) -> dict[str, dict[str, str]]:
    """Scorer -> clip id -> label, of scorers whose details name a label, such as the motion of the camera."""
    delta = open_table(root, "scores", version)
    if delta is None:
        return {}
    # Looked for in the files themselves: the details of other scorers are never held together.
    labelled = (pc.field("status") == "ok") & pc.match_substring(pc.field("details"), '"label"')
    rows = as_dataset(delta, "scores").to_table(columns=["clip_id", "scorer", "details", *ORDER], filter=labelled)
    found: dict[str, dict[str, str]] = {}
    for row in newest_by(rows, ["clip_id", "scorer"]).select(["clip_id", "scorer", "details"]).to_pylist():
        if (label := json.loads(row["details"]).get("label")) is not None:
            found.setdefault(row["scorer"], {})[row["clip_id"]] = str(label)
    return found


def score_label(name: str) -> str:
    """What a score or a figure of the clip measures, and which values are better; "" for scorers of a recipe's own."""
    facts = SCORER_FACTS.get(name)
    if facts is None:
        return CLIP_FIGURES.get(name, "")
    return f"{facts.axis}; {facts.direction}" if facts.direction else facts.axis


def status_counts(root: str, table: str, version: int | None = None) -> Counter[tuple[str, str]]:
    """How many latest rows by (status, error_type)."""
    rows = read_table(root, table, ["status", "error_type"], version)
    return Counter(zip(rows["status"].to_pylist(), rows["error_type"].to_pylist(), strict=True))


@dataclass(frozen=True)
class DropReason:
    """What one rule of a selection does."""

    reason: str
    alone: int  # clips that it would drop by itself
    in_order: int  # clips that no earlier rule had dropped
    only: int  # clips that no other rule would drop


def reason_counts(lists: Sequence[Sequence[str]]) -> list[DropReason]:
    """What each rule dropped, from the reasons of each clip (in the order of the rules)."""
    alone = Counter(reason for found in lists for reason in found)
    first = Counter(found[0] for found in lists if found)
    only = Counter(found[0] for found in lists if len(found) == 1)
    return [DropReason(reason, alone[reason], first[reason], only[reason]) for reason in _rule_order(lists)]


def _rule_order(lists: Sequence[Sequence[str]]) -> list[str]:
    """One order that agrees with every list: each names the rules that dropped a clip in the order of the rules.

    Limits of one score follow each other. What the lists leave open is as usual: limits, the other rules, quotas.
    """
    by_group: dict[str, set[str]] = {}
    followers: dict[str, set[str]] = {}
    for found in lists:
        for reason in found:
            by_group.setdefault(_group(reason), set()).add(reason)
            followers.setdefault(_group(reason), set())
        for earlier, later in itertools.pairwise(map(_group, found)):
            if earlier != later:
                followers[earlier].add(later)
    followers = {name: followers[name] for name in sorted(followers, key=_usual_place)}
    ordered: list[str] = []
    while followers:
        free = [name for name in followers if not any(name in later for later in followers.values())]
        name = free[0] if free else next(iter(followers))
        followers.pop(name)
        ordered += sorted(by_group[name], key=lambda reason: SIDES.index(_side(reason)))
    return ordered


def _group(reason: str) -> str:
    """The score that a rule limits, else the rule itself."""
    return reason.removesuffix(_side(reason))


def _side(reason: str) -> str:
    """What a limit on a score found, "" for other rules."""
    other = reason in LATER_RULES or reason.startswith(OUTER_SET)
    return "" if other else next((side for side in SIDES if side and reason.endswith(side)), "")


def _usual_place(group: str) -> int:
    """Rules of the set around come first, then limits on scores in the order of the clips, then LATER_RULES."""
    if group.startswith(OUTER_SET):
        return -1
    return 1 + LATER_RULES.index(group) if group in LATER_RULES else 0


def summary(column: pa.ChunkedArray) -> str:
    """A column in one phrase: range and mean of numbers, the values of a few-valued text, else how many differ."""
    kept = column.drop_null()
    if not len(kept):
        return "empty"
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        low, high, mean = (compact(f(kept).as_py()) for f in (pc.min, pc.max, pc.mean))
        return low if low == high else f"{low} … {high}, mean {mean}"
    if pa.types.is_timestamp(column.type):
        return f"to {pc.max(kept).as_py():%Y-%m-%d %H:%M:%S}"
    if pa.types.is_list(column.type):
        return f"{len(kept)} lists, {len(pc.list_flatten(kept))} entries"
    counts = Counter(kept.to_pylist()).most_common()
    if len(counts) > 4:
        return f"{len(counts)} values"
    return ", ".join(f"{value if value != '' else '(empty)'}: {count}" for value, count in counts)


def compact(number: float) -> str:
    """A number for people: whole numbers whole, others to four digits."""
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:,.4g}" if abs(number) < 10_000 else f"{number:,.0f}"


def file_size(num_bytes: int) -> str:
    """Bytes for people, in powers of ten: 950 B, 12.3 kB, 4.5 MB."""
    size, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
