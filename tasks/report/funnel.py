"""From source files to kept clips: what each stop lost and why, and whether the counts add up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.report.curation import Curation, common_reasons
from tasks.tables.delta import read_table


@dataclass(frozen=True)
class Stop:
    """One line of the funnel."""

    label: str
    unit: str  # files | clips: stops of one unit are drawn to one scale
    count: int
    lost: int = 0  # against the stop before
    why: str = ""
    rule: str = ""  # drop reason behind it, "" when it is no rule of the selection


@dataclass(frozen=True)
class Account:
    """A number and the parts that it must be the sum of."""

    what: str
    total: int
    parts: dict[str, int]

    @property
    def adds_up(self) -> bool:
        """Nothing was lost without a row that says why."""
        return self.total == sum(self.parts.values())


@dataclass(frozen=True)
class Intake:
    """What became of the source files."""

    files: list[dict[str, Any]]  # rows of `sources`: video_id, status, error_type
    videos: dict[str, dict[str, Any]]  # rows of `videos` by id, for videos that have a file

    @property
    def video_ids(self) -> list[str]:
        """Different videos, in the order of the files."""
        return list(dict.fromkeys(row["video_id"] for row in self.files if row["status"] == "ok"))


def read_intake(root: str) -> Intake:
    """Source files and videos with their statuses."""
    files = read_table(root, "sources", ["video_id", "status", "error_type"]).to_pylist()
    known = {row["video_id"] for row in files}
    videos = read_table(root, "videos", ["video_id", "status", "error_type"]).to_pylist()
    return Intake(files, {row["video_id"]: row for row in videos if row["video_id"] in known})


def funnel(intake: Intake, curation: Curation) -> list[Stop]:
    """Every stop on the way, in order."""
    ids = intake.video_ids
    good = [video_id for video_id in ids if _status(intake, video_id) == "ok"]
    bad_files = [row["error_type"] or row["status"] for row in intake.files if row["status"] != "ok"]
    copies = ["with the bytes of another"] * (len(intake.files) - len(bad_files) - len(ids))
    bad_videos = [_reason(intake, video_id) for video_id in ids if _status(intake, video_id) != "ok"]
    num_clips = curation.clips.num_rows
    stops = [
        Stop("source files", "files", len(intake.files)),
        Stop("different videos", "files", len(ids), len(intake.files) - len(ids), common_reasons(bad_files + copies)),
        Stop("videos with clips", "files", len(good), len(ids) - len(good), common_reasons(bad_videos)),
        Stop("clips", "clips", num_clips),
    ]
    left = num_clips
    for rule in curation.rules:
        left -= rule.in_order
        stops.append(Stop(f"after {rule.reason}", "clips", left, rule.in_order, "", rule.reason))
    if waiting := curation.keep.count(None):
        left -= waiting
        stops.append(Stop("judged", "clips", left, waiting, f"{waiting:,} not judged yet"))
    return [*stops, Stop("kept", "clips", curation.num_kept, left - curation.num_kept)]


def _status(intake: Intake, video_id: str) -> str:
    return intake.videos[video_id]["status"] if video_id in intake.videos else "waiting"


def _reason(intake: Intake, video_id: str) -> str:
    row = intake.videos.get(video_id)
    return (row["error_type"] or row["status"]) if row else "not cut yet"


def accounts(intake: Intake, curation: Curation) -> list[Account]:
    """Counts in and counts out of ingest, cutting and selecting."""
    ids = intake.video_ids
    files = Counter(row["status"] for row in intake.files)
    of_files = {"videos": len(ids), "with the bytes of another": files["ok"] - len(ids)}
    videos = Counter(_status(intake, video_id) for video_id in ids)
    keep = Counter(curation.keep)
    of_clips = {"kept": keep[True], "dropped": keep[False], "not judged yet": keep[None]}
    return [
        Account("source files", len(intake.files), of_files | _others(files, "ok")),
        Account("videos", len(ids), {"with clips": videos["ok"]} | _others(videos, "ok")),
        Account("clips of these videos", curation.num_named, of_clips),
    ]


def _others(counts: Counter[str], but: str) -> dict[str, int]:
    return {status: count for status, count in sorted(counts.items()) if status != but}


def largest(stops: Sequence[Stop], unit: str) -> int:
    """Count to which the bars of a unit are drawn, at least 1."""
    return max([1, *(stop.count for stop in stops if stop.unit == unit)])
