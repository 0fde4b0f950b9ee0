"""What the report says of each source: its files, and what curation kept of them."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tasks.report.curation import Curation
from tasks.sources.card import SourceCard, cards_of, read_card
from tasks.tables.delta import read_table
from tasks.tables.schemas import COMMON, SCHEMAS

MAX_SOURCES, MAX_FILES = 40, 50  # listed: sources, and files of each


@dataclass(frozen=True)
class Source:
    """Files that share a name and, if they have one, a source.yaml."""

    name: str
    attribution: str
    url: str
    files: list[dict[str, Any]] = field(default_factory=list)  # those that need attention first

    @property
    def statuses(self) -> Counter[str]:
        """Files by what decoding found."""
        return Counter(file["status"] for file in self.files)

    def total(self, column: str) -> float:
        """Sum of a column over the videos of the files, each video once."""
        videos = {file["video_id"]: file[column] or 0 for file in self.files}
        return sum(videos.values())


def sources(root: str, curation: Curation) -> list[Source]:
    """Source files by source, each with what decoding found, what was kept, and what its source.yaml says of it."""
    own = [name for name in SCHEMAS["videos"].names if name not in COMMON and name not in ("uri", "path", "license")]
    own.remove("clip_ids")
    videos = {row["video_id"]: row for row in read_table(root, "videos", [*own, "status", "error"]).to_pylist()}
    kept: Counter[str] = Counter()
    kept_s: dict[str, float] = defaultdict(float)
    of_kept = curation.kept().select(["video_id", "duration_s"])
    for video_id, seconds in zip(*(column.to_pylist() for column in of_kept.columns), strict=True):
        kept[video_id] += 1
        kept_s[video_id] += seconds
    blank = dict.fromkeys([*own, "status", "error"])
    found: dict[tuple[str, str], Source] = {}
    cards = {"": SourceCard(name="")}
    rows = read_table(root, "sources").to_pylist()
    for uri, row in zip(cards_of(rows), rows, strict=True):
        if uri not in cards:
            cards[uri] = readable_card(uri)
        card, key = cards[uri], (row["source"] or "(no name)", uri)
        # A link must not run anything, whatever a source.yaml says.
        url = card.url if card.url.startswith(("https://", "http://")) else ""
        source = found.setdefault(key, Source(key[0], card.attribution, url))
        video = videos.get(row["video_id"], blank)
        status = video["status"] or ("waiting" if row["status"] == "ok" else row["status"])
        own_facts = {name: row[name] for name in ("path", "license", "video_id")}
        facts = {"status": status, "error": video["error"] or row["error"], "card": card.file(row["path"])}
        of_clips = {"num_kept": kept[row["video_id"]], "kept_s": kept_s[row["video_id"]]}
        source.files.append(video | own_facts | facts | of_clips)
    for source in found.values():
        source.files.sort(key=lambda file: file["status"] == "ok")
    return list(found.values())


def readable_card(uri: str) -> SourceCard:
    """The source.yaml at `uri`; an empty one when it is not there any more or not right any more."""
    try:
        return read_card(uri)
    except (OSError, ValueError):
        return SourceCard(name="")
