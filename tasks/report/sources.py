"""Sources for the report: files of each source, and the clips that curation kept."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal, TypedDict, cast

from tasks.report.curation import Curation
from tasks.sources.card import FileCard, SourceCard, cards_of, read_card
from tasks.tables.delta import read_table

MAX_SOURCES, MAX_FILES = 40, 50  # on the page: sources, and files of each


class SourceFile(TypedDict):
    """A file of a source, with facts about its video; None if the video is not cut yet."""

    path: str
    license: str | None
    video_id: str
    status: str  # of the video; of the file if it could not be read; "waiting": not cut yet
    error: str | None
    card: FileCard
    width: int | None
    height: int | None
    fps_num: int | None
    fps_den: int | None
    codec: str | None
    duration_s: float | None
    num_frames: int | None
    num_shots: int | None
    num_clips: int | None
    num_kept: int
    kept_s: float


OF_VIDEO = ("width", "height", "fps_num", "fps_den", "codec", "duration_s", "num_frames", "num_shots", "num_clips")


@dataclass(frozen=True)
class Source:
    """Files that share the name of a source and, if they have one, a source.yaml."""

    name: str
    attribution: str
    url: str
    files: list[SourceFile] = field(default_factory=list)  # those with problems first

    @property
    def statuses(self) -> Counter[str]:
        """Number of files by status."""
        return Counter(file["status"] for file in self.files)

    def total(self, column: Literal["duration_s", "num_clips", "num_kept", "kept_s"]) -> float:
        """Sum of a column over the videos of the files; a video with several files counts once."""
        videos = {file["video_id"]: file[column] or 0 for file in self.files}
        return sum(videos.values())


def sources(root: str, curation: Curation) -> list[Source]:
    """Source files by source, each with the facts of its video, the clips kept, and its entry in source.yaml."""
    columns = [*OF_VIDEO, "status", "error"]
    videos = {row["video_id"]: row for row in read_table(root, "videos", ["video_id", *columns]).to_pylist()}
    num_kept: Counter[str] = Counter()
    kept_s: dict[str, float] = defaultdict(float)
    of_kept = curation.kept_clips().select(["video_id", "duration_s"])
    for video_id, seconds in zip(*(column.to_pylist() for column in of_kept.columns), strict=True):
        num_kept[video_id] += 1
        kept_s[video_id] += seconds
    not_cut = dict.fromkeys(columns)
    by_source: dict[tuple[str, str], Source] = {}
    cards = {"": SourceCard(name="")}
    rows = read_table(root, "sources").to_pylist()
    for uri, row in zip(cards_of(rows), rows, strict=True):
        if uri not in cards:
            cards[uri] = readable_card(uri)
        card, key = cards[uri], (row["source"] or "(no name)", uri)
        # Only web addresses become links: a source.yaml must not bring a script onto the page.
        url = card.url if card.url.startswith(("https://", "http://")) else ""
        source = by_source.setdefault(key, Source(key[0], card.attribution, url))
        video = videos.get(row["video_id"], not_cut)
        status = video["status"] or ("waiting" if row["status"] == "ok" else row["status"])
        of_file = {name: row[name] for name in ("path", "license", "video_id")}
        facts = {"status": status, "error": video["error"] or row["error"], "card": card.file(row["path"])}
        of_clips = {"num_kept": num_kept[row["video_id"]], "kept_s": kept_s[row["video_id"]]}
        source.files.append(cast(SourceFile, video | of_file | facts | of_clips))
    for source in by_source.values():
        source.files.sort(key=lambda file: file["status"] == "ok")
    return list(by_source.values())


def readable_card(uri: str) -> SourceCard:
    """The source.yaml at `uri`; an empty card if the file is missing or no longer valid."""
    try:
        return read_card(uri)
    except (OSError, ValueError):
        return SourceCard(name="")
