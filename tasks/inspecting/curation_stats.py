"""Counts of the last search for duplicates, and of the newest selection with its nested sets."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tasks.inspecting.table_stats import DropReason, Histogram, finite_values, histogram, reason_counts
from tasks.tables.current import current_duplicates
from tasks.tables.delta import read_table
from tasks.tables.drop_reasons import NOT_CURRENT
from tasks.tables.manifest import left_join, newest_selection
from tasks.tables.newest import newest_by
from tasks.tables.schemas import SCHEMAS


@dataclass(frozen=True)
class DuplicateStats:
    """Groups of duplicates that one method found."""

    method: str
    num_groups: int
    num_clips: int  # in all groups
    sizes: Counter[int]  # number of clips in a group -> number of groups
    similarity: Histogram | None  # similarity of each clip to the most similar one

    @property
    def num_extra(self) -> int:
        """Clips that are dropped when one clip of each group is kept."""
        return self.num_clips - self.num_groups


def duplicate_stats(root: str, version: int | None = None) -> list[DuplicateStats]:
    """Groups that each method found in the last search."""
    rows = current_duplicates(root, ["method", "group_id", "similarity"], version=version)
    stats = []
    for method in pc.unique(rows["method"]).sort().to_pylist():
        of_method = rows.filter(pc.equal(rows["method"], method))
        clips = Counter(of_method["group_id"].to_pylist())
        similarity = histogram("similarity", finite_values(of_method["similarity"]))
        stats.append(DuplicateStats(method, len(clips), of_method.num_rows, Counter(clips.values()), similarity))
    return stats


@dataclass(frozen=True)
class SetStats:
    """Counts of one nested set, or of a selection without sets."""

    name: str  # empty without sets
    kept: int
    judged: int
    rules: list[DropReason]
    shares: dict[str, dict[str, Counter[str]]]  # "source" or "bucket" -> value -> split -> kept clips


def selection_stats(root: str) -> list[SetStats]:
    """Counts of the newest selection; if it has nested sets, of the newest selection of each set, the largest first."""
    names = [name for name in SCHEMAS["selections"].names if name != "selection_id"]
    rows = read_table(root, "selections", names)
    rows = rows.filter(pc.invert(_withdrawn(rows)))
    newest = rows.filter(pc.equal(rows["params_hash"], newest_selection(root)))
    subsets = rows.filter(pc.greater(pc.utf8_length(pc.fill_null(rows["subset"], "")), 0))
    if newest.num_rows and newest["subset"][-1].as_py():
        last = newest_by(subsets, ["subset"]).select(["subset", "params_hash"]).to_pylist()
        selections = [rows.filter(pc.equal(rows["params_hash"], row["params_hash"])) for row in last]
    else:
        selections = [newest]
    clips = read_table(root, "clips", ["clip_id", "video_id"])
    videos = read_table(root, "videos", ["video_id", "source"])
    clips = left_join(clips, videos, "video_id", {"source": "source"})
    stats = [_set_stats(newest_by(verdicts, ["clip_id"]), clips) for verdicts in selections]
    return sorted(stats, key=lambda of_set: -of_set.kept)


def _withdrawn(rows: pa.Table) -> pa.ChunkedArray:
    """Mask of the verdicts whose only reason is NOT_CURRENT: the clip is not cut any more, so nothing was judged."""
    return pc.fill_null(pc.equal(pc.binary_join(rows["drop_reasons"], ","), NOT_CURRENT), False)


def _set_stats(verdicts: pa.Table, clips: pa.Table) -> SetStats:
    clips_kept = left_join(verdicts.filter(pc.field("keep")), clips, "clip_id", {"source": "source"})
    shares: dict[str, dict[str, Counter[str]]] = {}
    for name in ("source", "bucket"):
        shares[name] = {}
        for value, split in zip(clips_kept[name].to_pylist(), clips_kept["split"].to_pylist(), strict=True):
            shares[name].setdefault(value or "(none)", Counter())[split] += 1
    name = (verdicts["subset"][0].as_py() or "") if verdicts.num_rows else ""
    rules = reason_counts([reasons or [] for reasons in verdicts["drop_reasons"].to_pylist()])
    return SetStats(name, clips_kept.num_rows, verdicts.num_rows, rules, shares)
