"""Groups of clips that show the same, for the report: side by side, with the one that stays and why."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from tasks.inspecting.table_stats import file_size
from tasks.report.curation import Curation
from tasks.selecting.duplicates import length_step
from tasks.tables.delta import read_table

MAX_GROUPS, MAX_MEMBERS = 24, 8  # shown; the counts are of all
COLUMNS = ("clip_id", "method", "group_id", "rank", "similarity")
FACTS = ("clip_id", "path", "start_s", "end_s", "num_frames", "width", "height", "size_bytes", "keep")


@dataclass(frozen=True)
class Member:
    """A clip of a group."""

    clip: dict[str, Any]  # FACTS
    rank: int  # 0 is the keeper
    similarity: float | None  # 0..1, to the clip of the group that is most like it


@dataclass(frozen=True)
class Group:
    """Clips that one method takes for the same, in the order in which they would be kept."""

    method: str
    members: list[Member]

    @property
    def why(self) -> str:
        """What the keeper has over the next one."""
        return why_first(self.members[0].clip, self.members[1].clip)


@dataclass(frozen=True)
class Duplicates:
    """Groups of the current clips, the largest first."""

    groups: list[Group]
    extra_clips: Counter[str]  # clips that are no keepers, by method

    @property
    def shown(self) -> list[Group]:
        """As many as the page has room for, methods taking turns."""
        by_method = [[group for group in self.groups if group.method == method] for method in self.extra_clips]
        turns = sorted((place, number) for number, found in enumerate(by_method) for place in range(len(found)))
        return [by_method[number][place] for place, number in turns[:MAX_GROUPS]]


def read_duplicates(root: str, curation: Curation) -> Duplicates:
    """What the last search for duplicates found among the current clips."""
    rows = read_table(root, "duplicates", COLUMNS, where=pc.field("status") == "ok")
    facts = curation.clips.select(FACTS)
    if rows.num_rows:
        facts = facts.filter(pc.field("clip_id").isin(rows["clip_id"].combine_chunks()))
    clips = {clip["clip_id"]: clip for clip in facts.to_pylist()} if rows.num_rows else {}
    members: dict[tuple[str, str], list[Member]] = defaultdict(list)
    for row in rows.to_pylist():
        if clip := clips.get(row["clip_id"]):
            members[row["method"], row["group_id"]].append(Member(clip, row["rank"] or 0, row["similarity"]))
    groups = [
        Group(method, sorted(found, key=lambda one: one.rank))
        for (method, _), found in members.items()
        if len(found) > 1
    ]
    groups.sort(key=lambda group: -len(group.members))
    extra = Counter(group.method for group in groups for _ in group.members[1:])
    return Duplicates(groups, extra)


def why_first(clip: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Why one clip of a group is kept rather than another, as far as figures tell (`duplicates.keeping_order`)."""
    if clip["width"] * clip["height"] != other["width"] * other["height"]:
        return "more pixels: {width}×{height}, ".format_map(clip) + "the next {width}×{height}".format_map(other)
    if length_step(clip["num_frames"]) != length_step(other["num_frames"]):
        return f"longer: {clip['num_frames']:,} frames, the next {other['num_frames']:,}"
    if clip["size_bytes"] != other["size_bytes"]:
        return f"larger file: {file_size(clip['size_bytes'])}, the next {file_size(other['size_bytes'])}"
    return "about as long, and equal in size: the smallest id"
