"""Groups of clips that show the same, for the report: side by side, with the one that stays."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import pyarrow.compute as pc

from tasks.manifest import newest_by
from tasks.report_curation import Curation
from tasks.tables import read_table

MAX_GROUPS, MAX_MEMBERS = 24, 8  # shown; the counts are of all


@dataclass(frozen=True)
class Member:
    """A clip of a group."""

    clip_id: str
    keeper: bool
    path: str
    start_s: float
    size: str  # "<width>×<height>"


@dataclass(frozen=True)
class Group:
    """Clips that one method takes for the same, the keeper first."""

    group_id: str
    method: str
    members: list[Member]


@dataclass(frozen=True)
class Duplicates:
    """Groups of the current clips."""

    groups: list[Group]  # of more than one clip, the largest first
    clips_by_method: Counter[str]  # clips that are no keepers

    @property
    def shown(self) -> list[Group]:
        """As many as the page has room for, methods taking turns by size alone."""
        return self.groups[:MAX_GROUPS]


def read_duplicates(root: str, curation: Curation) -> Duplicates:
    """The newest grouping of the current clips, by each method."""
    ok = pc.field("status") == "ok"
    columns = ["clip_id", "method", "group_id", "keeper", "created_at"]
    rows = newest_by(read_table(root, "duplicates", columns, where=ok), ["clip_id", "method"]).to_pylist()
    facts = curation.clips.select(["clip_id", "path", "start_s", "width", "height"]).to_pylist() if rows else []
    clips = {row["clip_id"]: row for row in facts}
    members: dict[tuple[str, str], list[Member]] = defaultdict(list)
    for row in rows:
        if clip := clips.get(row["clip_id"]):
            size = f"{clip['width']}×{clip['height']}"
            member = Member(row["clip_id"], bool(row["keeper"]), clip["path"] or "", clip["start_s"], size)
            members[row["method"], row["group_id"]].append(member)
    groups = [
        Group(group_id, method, sorted(found, key=lambda one: (not one.keeper, one.path, one.start_s)))
        for (method, group_id), found in members.items()
        if len(found) > 1
    ]
    dropped = Counter(group.method for group in groups for member in group.members if not member.keeper)
    return Duplicates(sorted(groups, key=lambda group: -len(group.members)), dropped)
