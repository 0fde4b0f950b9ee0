"""Counts from source files to kept clips, with the reasons for losses, and whether the counts add up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.report.curation import Curation, common_reasons
from tasks.tables.delta import read_table

COPY = "with the same bytes as another"


@dataclass(frozen=True)
class FunnelLine:
    """One line of the funnel."""

    label: str
    unit: str  # files | clips; bars of lines with the same unit have the same scale
    count: int
    lost: int = 0  # difference to the line before
    reason: str = ""
    rule: str = ""  # drop reason, "" for a line that is not a rule of the selection


@dataclass(frozen=True)
class Account:
    """A count, and the counts that must add up to it."""

    description: str
    total: int
    parts: dict[str, int]

    @property
    def adds_up(self) -> bool:
        """Whether the parts add up: every missing item has a row that says why."""
        return self.total == sum(self.parts.values())


@dataclass(frozen=True)
class Outcome:
    """Result of a source file or a video."""

    video_id: str
    status: str
    error_type: str

    @property
    def reason(self) -> str:
        """Reason why it failed or was skipped; otherwise its status."""
        return self.error_type or self.status


@dataclass(frozen=True)
class Intake:
    """Results of the source files and their videos."""

    files: list[Outcome]
    videos: dict[str, Outcome]  # by id, for videos that have a file

    @property
    def video_ids(self) -> list[str]:
        """Different videos, in the order of the files."""
        return list(dict.fromkeys(file.video_id for file in self.files if file.status == "ok"))

    def status(self, video_id: str) -> str:
        """Status of a video; "waiting" before it is cut."""
        return self.videos[video_id].status if video_id in self.videos else "waiting"

    def reason(self, video_id: str) -> str:
        """Reason why a video has no clips."""
        return self.videos[video_id].reason if video_id in self.videos else "not cut yet"


def read_intake(root: str) -> Intake:
    """Source files and videos with their statuses."""
    files = _outcomes(root, "sources")
    with_file = {file.video_id for file in files}
    videos = _outcomes(root, "videos")
    return Intake(files, {video.video_id: video for video in videos if video.video_id in with_file})


def _outcomes(root: str, table: str) -> list[Outcome]:
    rows = read_table(root, table, ["video_id", "status", "error_type"])
    columns = (rows[name].to_pylist() for name in ("video_id", "status", "error_type"))
    return [Outcome(*values) for values in zip(*columns, strict=True)]


def funnel(intake: Intake, curation: Curation) -> list[FunnelLine]:
    """Every line, in order."""
    ids = intake.video_ids
    good = [video_id for video_id in ids if intake.status(video_id) == "ok"]
    bad_files = [file.reason for file in intake.files if file.status != "ok"]
    copies = [COPY] * (len(intake.files) - len(bad_files) - len(ids))
    bad_videos = [intake.reason(video_id) for video_id in ids if intake.status(video_id) != "ok"]
    num_clips = curation.clips.num_rows
    lines = [
        FunnelLine("source files", "files", len(intake.files)),
        FunnelLine(
            "different videos", "files", len(ids), len(intake.files) - len(ids), common_reasons(bad_files + copies)
        ),
        FunnelLine("videos with clips", "files", len(good), len(ids) - len(good), common_reasons(bad_videos)),
        FunnelLine("clips", "clips", num_clips),
    ]
    remaining = num_clips
    for rule in curation.rules:
        remaining -= rule.in_order
        lines.append(FunnelLine(f"after {rule.reason}", "clips", remaining, rule.in_order, "", rule.reason))
    if num_waiting := curation.keep.count(None):
        remaining -= num_waiting
        lines.append(FunnelLine("judged", "clips", remaining, num_waiting, f"{num_waiting:,} not judged yet"))
    return [*lines, FunnelLine("kept", "clips", curation.num_kept, remaining - curation.num_kept)]


def accounts(intake: Intake, curation: Curation) -> list[Account]:
    """Counts into and out of ingest, cutting and selecting."""
    ids = intake.video_ids
    files = Counter(file.status for file in intake.files)
    of_files = {"videos": len(ids), COPY: files["ok"] - len(ids)}
    videos = Counter(intake.status(video_id) for video_id in ids)
    keep = Counter(curation.keep)
    of_clips = {"kept": keep[True], "dropped": keep[False], "not judged yet": keep[None]}
    return [
        Account("source files", len(intake.files), of_files | _others(files, "ok")),
        Account("videos", len(ids), {"with clips": videos["ok"]} | _others(videos, "ok")),
        Account("clips of these videos", curation.num_named, of_clips),
    ]


def _others(counts: Counter[str], left_out: str) -> dict[str, int]:
    return {status: count for status, count in sorted(counts.items()) if status != left_out}


def largest(lines: Sequence[FunnelLine], unit: str) -> int:
    """The largest count of a unit, at least 1: its bar has the full width."""
    return max([1, *(line.count for line in lines if line.unit == unit)])
