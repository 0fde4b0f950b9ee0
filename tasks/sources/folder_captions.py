"""Captions beside the videos of a folder: a text of the same name, a list such as metadata.csv, or a pair of lists."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

from tasks.sources.card import card_uri, read_card
from tasks.sources.list_formats import TEXT, Annotation, BadEntry, Columns, Entry, clock_seconds, lower
from tasks.sources.lists import list_kind, read_list
from tasks.sources.media_folder import MediaFolder
from tasks.tables import storage
from tasks.tables.web_hosts import Allowed

SIDECARS = (".txt", ".caption", ".srt", ".vtt", ".json")  # beside NAME.mp4, NAME with the first of these that has text
LISTS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".jsonl.gz", ".csv.zst", ".jsonl.zst")
VIDEOS = ("videos.txt", "video.txt", "video_paths.txt")
PROMPTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
MAX_SIDECAR_BYTES = 2**20
READS = 16  # files that are read at once, since object stores answer slowly
CUE = re.compile(r"([\d:.,]+)\s*-->\s*([\d:.,]+)")


class _File(Protocol):
    @property
    def uri(self) -> str: ...
    @property
    def archive(self) -> str: ...


class _Options(Protocol):
    @property
    def hosts(self) -> Allowed: ...
    @property
    def columns(self) -> Columns: ...


@dataclass
class Told:
    """What files beside the videos say.

    of: captions by URI of the video. forms: where captions were found, and of how many videos. notes: what was found
    and not used.
    """

    of: dict[str, tuple[Annotation, ...]] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def captions_beside(files: Sequence[_File], uris: Sequence[str], options: _Options) -> Told:
    """Captions of the videos of a folder. A list counts before a text of the video's name.

    Args:
        files: the videos.
        uris: of all files of the folder.
        options: hosts as in `storage.filesystem`, columns as in `list_formats.renamed`.

    Raises:
        ValueError: a list of videos and a list of prompts have different numbers of lines.
    """
    told = Told()
    videos = {file.uri for file in files if not file.archive}
    stems = {_stem(uri) for uri in videos}
    texts = [uri for uri in uris if uri not in videos and _suffix(uri) in SIDECARS]
    beside: dict[str, list[str]] = {}  # by name of the video without its suffix
    for uri in texts:
        if (stem := _stem(uri)) in stems:
            beside.setdefault(stem, []).append(uri)
    sidecars = {uri for names in beside.values() for uri in names}
    for uri in sorted(uris):
        if uri not in sidecars and uri not in videos:
            _read_beside(uri, videos, told, options)
    _read_sidecars(videos, beside, told, options.hosts)
    return told


def _read_beside(uri: str, videos: set[str], told: Told, options: _Options) -> None:
    """Add the captions of a list in the folder."""
    folder, _, name = uri.rpartition("/")
    if name.lower() in VIDEOS:
        form, entries = read_list(uri, "txt", options.hosts)
        prompts, entries = with_prompts(uri, "txt", entries, options.hosts)
        if prompts:
            _add(f"captions in {prompts}", entries, MediaFolder(folder, True), videos, told)
        return
    if not name.lower().endswith(LISTS) or name == _list_of_card(folder):
        return
    kind = list_kind(uri)
    if kind not in ("csv", "tsv", "jsonl", "json", "parquet"):
        return
    try:
        form, entries = read_list(uri, kind, options.hosts, options.columns)
    except ValueError:  # any other file with such a suffix
        return
    _add(f"captions in {name}", entries, MediaFolder(folder, form.from_dataset or form.name == "a list"), videos, told)


def _add(form: str, entries: Iterator[Entry | BadEntry], media: MediaFolder, videos: set[str], told: Told) -> None:
    """Add the captions of entries whose videos are in the folder."""
    used, unused, bad = set(), 0, []
    for entry in entries:
        if isinstance(entry, BadEntry):
            bad.append(entry.reason)
        elif entry.annotations:
            uri = media.find(entry.name)
            if uri in videos:
                told.of[uri] = told.of.get(uri, ()) + entry.annotations
                used.add(uri)
            else:
                unused += 1
    if used:
        told.forms.append(f"{form}: {len(used)} of {len(videos)} videos")
        told.notes += (f"{form}: {unused} are of files that are not there",) if unused else ()
        told.notes += (f"{form}: {len(bad)} lines cannot be used, first: {bad[0]}",) if bad else ()


def _list_of_card(folder: str) -> str:
    """Name of the caption file that a source.yaml in the folder names, which the captions step reads; "" if none."""
    try:
        return read_card(card_uri(folder)).captions or ""
    except (OSError, ValueError):  # no card, or a wrong one, which `FolderCards` reports
        return ""


def _read_sidecars(videos: set[str], beside: Mapping[str, list[str]], told: Told, hosts: Allowed) -> None:
    """Add captions from files that have the name of a video and another suffix."""
    missing = [uri for uri in sorted(videos) if uri not in told.of and _stem(uri) in beside]
    with ThreadPoolExecutor(READS) as pool:
        read = list(pool.map(lambda uri: _of_video(beside[_stem(uri)], hosts), missing))
    counts: dict[str, int] = {}
    empty = [uri for uri, (_, annotations, _) in zip(missing, read, strict=True) if not annotations]
    problems = [problem for _, _, problem in read if problem]
    for uri, (suffix, annotations, _) in zip(missing, read, strict=True):
        if annotations:
            told.of[uri] = annotations
            counts[suffix] = counts.get(suffix, 0) + 1
    told.forms += [f"captions in NAME{suffix}: {n} of {len(videos)} videos" for suffix, n in sorted(counts.items())]
    if empty and (counts or problems):
        told.notes += (f"{len(empty)} videos have a caption file without a caption, first: {empty[0]}",)
    told.notes += tuple(problems[:1])


def _of_video(uris: Sequence[str], hosts: Allowed) -> tuple[str, tuple[Annotation, ...], str]:
    """Suffix and captions of the first file with a caption, and a problem."""
    problem = ""
    for uri in sorted(uris, key=lambda uri: SIDECARS.index(_suffix(uri))):
        try:
            data = storage.read_bytes(uri, hosts=hosts)
            if len(data) > MAX_SIDECAR_BYTES:
                raise ValueError(f"it has more than {MAX_SIDECAR_BYTES} bytes")
            if annotations := _sidecar(_suffix(uri), data.decode("utf-8-sig")):
                return _suffix(uri), annotations, ""
        except (OSError, ValueError) as err:  # UnicodeDecodeError is a ValueError
            problem = f"caption file {uri} cannot be used: {err}"
    return "", (), problem


def _sidecar(suffix: str, text: str) -> tuple[Annotation, ...]:
    """Captions of a file beside a video."""
    if suffix in (".srt", ".vtt"):
        return tuple(_cues(text))
    if suffix == ".json":
        content = json.loads(text)
        row: dict[str, Any] = lower(content) if isinstance(content, dict) else {}
        value = next((row[name] for name in TEXT if row.get(name)), "")
        texts = value if isinstance(value, list) else [value]
    else:
        texts = [" ".join(text.split())]
    return tuple(_whole(text) for text in texts if isinstance(text, str) and text.strip())


def _whole(text: str) -> Annotation:
    return {"start_s": None, "end_s": None, "text": text.strip()}


def _cues(text: str) -> Iterator[Annotation]:
    """Captions of subtitles; the lines of a cue are one caption."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        number = next((number for number, line in enumerate(lines) if CUE.search(line)), None)
        if number is None:
            continue
        match = CUE.search(lines[number])
        assert match is not None, "this line was found by it"
        start, end = map(clock_seconds, match.groups())
        words = re.sub(r"<[^>]*>", "", " ".join(lines[number + 1 :])).strip()
        if words and start < end:
            yield {"start_s": start, "end_s": end, "text": words}


def with_prompts(
    uri: str, kind: str, entries: Iterator[Entry | BadEntry], hosts: Allowed
) -> tuple[str, Iterator[Entry | BadEntry]]:
    """The entries of a plain list with the captions of a list of prompts beside it, line by line, and its name.

    Raises:
        ValueError: the two have different numbers of lines.
    """
    folder, _, name = uri.rpartition("/")
    if kind != "txt" or name.lower() not in VIDEOS:
        return "", entries
    prompts = next((name for name in PROMPTS if storage.exists(f"{folder}/{name}", hosts)), "")
    if not prompts:
        return "", entries
    lines = storage.read_bytes(f"{folder}/{prompts}", hosts=hosts).decode("utf-8-sig").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    listed = list(entries)
    if len(lines) != len(listed):
        raise ValueError(
            f"{uri} names {len(listed)} videos and {prompts} beside it has {len(lines)} lines: line n of one is for "
            "line n of the other, so make both equally long, or rename the list of prompts"
        )
    return prompts, (
        Entry(entry.name, (_whole(line),)) if isinstance(entry, Entry) and line.strip() else entry
        for entry, line in zip(listed, lines, strict=True)
    )


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix.lower()


def _stem(uri: str) -> str:
    """Path without the last suffix; names may hold dots."""
    return str(PurePosixPath(uri).with_suffix("")) if PurePosixPath(uri).name else uri
