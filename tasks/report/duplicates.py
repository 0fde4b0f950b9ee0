"""Groups of duplicate clips for the report: side by side, with the clip that is kept and why."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TypedDict, cast

import pyarrow.compute as pc

from tasks.inspecting.table_stats import file_size
from tasks.report.curation import Curation
from tasks.selecting.duplicates import length_step
from tasks.tables.current import current_duplicates

MAX_GROUPS, MAX_MEMBERS = 24, 8  # on the page; the counts include all
COLUMNS = ("clip_id", "method", "group_id", "rank", "similarity")


class ClipFacts(TypedDict):
    """Facts about a clip of a group that the page shows."""

    clip_id: str
    path: str  # of its video
    start_s: float
    end_s: float
    num_frames: int
    width: int
    height: int
    size_bytes: int | None
    keep: bool | None  # the verdict; None: not judged


@dataclass(frozen=True)
class Member:
    """A clip in a group."""

    clip: ClipFacts
    rank: int  # 0: the keeper
    similarity: float | None  # 0..1, to the most similar clip of the group


@dataclass(frozen=True)
class Group:
    """Clips that one method found to be duplicates, in the order in which they would be kept."""

    method: str
    members: list[Member]

    @property
    def reason(self) -> str:
        """Reason why the keeper comes before the next clip."""
        return why_first(self.members[0].clip, self.members[1].clip)


@dataclass(frozen=True)
class Duplicates:
    """Groups of the current clips, the largest first."""

    groups: list[Group]
    extra_clips: Counter[str]  # number of clips besides the keepers, by method

    @property
    def on_page(self) -> list[Group]:
        """The groups that the page has room for; methods take turns."""
        by_method = [[group for group in self.groups if group.method == method] for method in self.extra_clips]
        turns = sorted((place, number) for number, groups in enumerate(by_method) for place in range(len(groups)))
        return [by_method[number][place] for place, number in turns[:MAX_GROUPS]]


def read_duplicates(root: str, curation: Curation) -> Duplicates:
    """Groups that the last search for duplicates found among the current clips."""
    rows = current_duplicates(root, COLUMNS)
    facts = curation.clips.select(list(ClipFacts.__annotations__))
    if rows.num_rows:
        facts = facts.filter(pc.field("clip_id").isin(rows["clip_id"].combine_chunks()))
    in_groups = cast("list[ClipFacts]", facts.to_pylist() if rows.num_rows else [])
    clips = {clip["clip_id"]: clip for clip in in_groups}
    members: dict[tuple[str, str], list[Member]] = defaultdict(list)
    for row in rows.to_pylist():
        if clip := clips.get(row["clip_id"]):
            members[row["method"], row["group_id"]].append(Member(clip, row["rank"] or 0, row["similarity"]))
    groups = [
        Group(method, sorted(of_group, key=lambda member: member.rank))
        for (method, _), of_group in members.items()
        if len(of_group) > 1
    ]
    groups.sort(key=lambda group: -len(group.members))
    extra = Counter(group.method for group in groups for _ in group.members[1:])
    return Duplicates(groups, extra)


def why_first(clip: ClipFacts, other: ClipFacts) -> str:
    """Reason to keep a clip rather than another one: the first figure of `duplicates.keeping_order` that differs."""
    if clip["width"] * clip["height"] != other["width"] * other["height"]:
        return "more pixels: {width}×{height}, ".format_map(clip) + "the next {width}×{height}".format_map(other)
    if length_step(clip["num_frames"]) != length_step(other["num_frames"]):
        return f"longer: {clip['num_frames']:,} frames, the next {other['num_frames']:,}"
    if clip["size_bytes"] != other["size_bytes"]:
        return f"larger file: {file_size(clip['size_bytes'] or 0)}, the next {file_size(other['size_bytes'] or 0)}"
    return "equal in pixels and bytes, about equal in length: the smallest id"
