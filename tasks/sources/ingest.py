"""Finding videos: every file that a source names gets a row with the content id of its bytes."""

import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pyramid_model.config import Config
from tasks.running.cluster import connect
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult
from tasks.running.step import step
from tasks.running.work import Item, PerItemWork, Produced
from tasks.sources.card import SourceCard, card_uri, read_card
from tasks.sources.fetch import FetchConfig, FetchError, Sink, fetch, is_web, read_file
from tasks.sources.listing import IMAGES, NON_MEDIA, SHARD, Source, SourceFile, source_files
from tasks.tables import storage
from tasks.tables.delta import bad_row, content_id, ok_row, read_table
from tasks.tables.host_budget import Budget, SharedBudget
from tasks.tables.newest import ORDER, newest_by
from tasks.tables.pending import Pending, pending

VERSION = "1"
MAX_BLOCK_BYTES = 4 * 2**30  # read within minutes from a slow disk, too: that is how often a block commits
# Of an item: it gives them to its row otherwise, or not at all.
NOT_COLUMNS = ("attempt", "sha256", "md5", "archive", "offset", "error_type", "error")


class IngestConfig(Config):
    """The source of the videos, and how files are read from it."""

    source: str = Field("", description="folder of videos, list or annotation file, or one file; path or URI")
    media_root: str = Field(
        "", description="folder that paths in a list are relative to; empty: the folder of the list"
    )
    non_media: tuple[str, ...] = Field(NON_MEDIA, description="suffixes of files that are ignored in folders")
    images: bool = Field(False, description="also read pictures in folders; each is a video of one frame")
    copies: Literal["web", "remote", "none"] = Field(
        "web", description="which files are copied to media/sources: from the web, all remote files, or none"
    )
    fetch: FetchConfig = FetchConfig()
    block_size: int = Field(16, ge=1, description="files in a block, which is computed and committed together")

    @property
    def left_out(self) -> tuple[str, ...]:
        """Suffixes of files in folders that are no candidates."""
        return tuple(suffix for suffix in self.non_media if not (self.images and suffix in IMAGES))


class CardUnreachableError(RuntimeError):
    """The file system of a file does not say whether a source.yaml describes it."""


class FileHasher:
    """Actor: reads each file once, gives it its content id, and keeps a copy of it when that is asked for.

    Args:
        config: whole settings of the step.
        media: URI of the folder of copies.
        budget: shared by all actors; None: what is fetched, if anything, is fetched by this one alone.
        limit_s: fetching a file is given up then: a block ends before the pipeline's patience does.
    """

    def __init__(self, config: IngestConfig, media: str, budget: Budget | None = None, limit_s: float = math.inf):
        self.config, self.media, self.limit_s = config, media, limit_s
        self.budget = budget or config.fetch.own_budget()

    def __call__(self, items: list[Item]) -> Produced:
        """Rows of `sources`, one an item."""
        if not any(is_web(item["uri"]) for item in items):
            return Produced({"sources": [self._row(item) for item in items]})
        with ThreadPoolExecutor(self.config.fetch.connections) as pool:
            return Produced({"sources": list(pool.map(self._row, items))})

    def _row(self, item: dict[str, Any]) -> dict[str, Any]:
        columns = {name: value for name, value in item.items() if name not in NOT_COLUMNS}
        if item.get("error_type"):
            return bad_row(item, (item["error_type"], item["error"]), video_id="", **columns)
        if item.get("video_id"):  # read before, and described anew
            return ok_row(item, **columns)
        if not self._is_kept(item):
            return self._read_row(item, columns, "")
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=self._staging()) as folder:
            suffix = PurePosixPath(urlsplit(item["uri"]).path if is_web(item["uri"]) else item["path"]).suffix
            path = os.path.join(folder, "copy" + (suffix if re.fullmatch(r"\.\w{1,8}", suffix) else ""))
            open(path, "wb").close()
            return self._read_row(item, columns, path)

    def _is_kept(self, item: dict[str, Any]) -> bool:
        if item["archive"]:  # a decoder cannot look for a file in there
            return True
        if is_web(item["uri"]):
            return self.config.copies != "none"
        return self.config.copies == "remote" and not storage.is_local(item["uri"])

    def _staging(self) -> str | None:
        """Where copies grow: beside their place, so that they appear there by a rename."""
        if not storage.is_local(self.media):
            return None
        folder = storage.filesystem(self.media)[1]
        os.makedirs(folder, exist_ok=True)
        return folder

    def _read_row(self, item: dict[str, Any], columns: dict[str, Any], path: str) -> dict[str, Any]:
        """Row of a file that is read now, into a local file at `path` unless that is empty."""
        sums = tuple(name for name in ("sha256", "md5") if item[name])
        sink = Sink(path, sums)
        try:
            self._read(item, sink)
        except Exception as err:
            if isinstance(err, OSError) and err.errno == errno.ENOSPC:
                raise  # nothing is wrong with the file
            # Each file system has its own exceptions; whichever comes says that this file cannot be read.
            kind = "missing" if isinstance(err, FileNotFoundError) else getattr(err, "kind", "unreadable")
            text = str(err) if isinstance(err, FetchError) else f"{type(err).__name__}: {err}"
            return bad_row(item, (kind, text), video_id="", **columns)
        if is_web(item["uri"]):
            columns = columns | {"size_bytes": sink.size_bytes}
        if problem := _problem(item, sink, columns["size_bytes"]):
            return bad_row(item, problem, video_id="", **columns)
        copy = f"{self.media}/{sink.video_id}{PurePosixPath(path).suffix}" if path else ""
        if copy:
            storage.publish(path, copy)
        return ok_row(item, video_id=sink.video_id, copy=copy, **columns)

    def _read(self, item: dict[str, Any], sink: Sink) -> None:
        if is_web(item["uri"]):
            fetch(item["uri"], sink, self.config.fetch, self.budget, self.limit_s)
        elif item["archive"]:
            read_file(item["archive"], sink, item["offset"], item["size_bytes"])
        else:
            read_file(item["uri"], sink)


def _problem(item: dict[str, Any], sink: Sink, size_bytes: int) -> tuple[str, str] | None:
    """What is wrong with a file that could be read: (error_type, sentence)."""
    if sink.size_bytes != size_bytes:
        return "changed", f"{sink.size_bytes} bytes were read of a file of {size_bytes}: it was being written"
    for name in sink.sums:
        if sink.sum(name) != item[name].lower():
            return "checksum", f"{name} {sink.sum(name)} is not that of source.yaml or of the list, {item[name]}"
    return None


def hash_file(uri: str, want_sha256: bool = False) -> tuple[str, str, int]:
    """(blake2b-128 hex, sha256 hex or "", size in bytes) of a file, read piece by piece."""
    sink = Sink(sums=("sha256",) if want_sha256 else ())
    read_file(uri, sink)
    return sink.video_id, sink.sum("sha256") if want_sha256 else "", sink.size_bytes


class IngestResult(StepResult):
    """What the ingest step says of the files beyond their counts."""

    num_copies: int = Field(0, description="files with the same bytes as another file")


@step
def ingest(run: Run, config: IngestConfig) -> IngestResult:
    """Give every file of the source a row in `sources`; a file that has not changed since is not read again.

    Raises:
        ValueError: the source is missing or empty, or a source.yaml in it is wrong.
    """
    source = source_files(config.source, run.root, config.left_out, config.media_root, config.fetch)
    wanted = {row["source_id"]: row for row in _rows(source.folder, source.files, _known_urls(run, source.files))}
    todo = pending(run.root, "sources", wanted, run.retry_failed)
    again = _described_anew(run, wanted, todo)
    items = todo.items(wanted.values(), "source_id")
    budget = _budget(run, config, items)
    work = PerItemWork(
        step="ingest",
        version=VERSION,
        config=config,
        worker=FileHasher,
        done_table="sources",
        worker_args={
            "config": config,
            "media": run.media("sources"),
            "budget": budget,
            "limit_s": 0.9 * run.ray.no_progress_timeout_s,
        },
        # What is fetched may come slowly: the files of a block are fetched all at once.
        block_size=min(config.block_size, config.fetch.connections) if budget else config.block_size,
        max_block_bytes=MAX_BLOCK_BYTES,
    )
    result = run_blocks(run, work, items + again, todo.num_done - len(again))
    return _with_note(run, result, source, wanted)


def _budget(run: Run, config: IngestConfig, items: Sequence[dict[str, Any]]) -> Budget | None:
    """One for all actors, when something is to be fetched."""
    if not any(is_web(item["uri"]) for item in items):
        return None
    connect(run.ray)
    return SharedBudget(config.fetch.own_budget())


def _known_urls(run: Run, files: Sequence[SourceFile]) -> dict[str, str]:
    """Source ids of the URLs that were fetched before: they are not asked again whether anything changed."""
    urls = [file.uri for file in files if is_web(file.uri)]
    if not urls:
        return {}
    of_urls = pc.field("uri").isin(pa.array(urls, pa.string()))
    rows = newest_by(read_table(run.root, "sources", ["uri", "source_id", *ORDER], where=of_urls), ["uri"])
    return dict(zip(rows["uri"].to_pylist(), rows["source_id"].to_pylist(), strict=True))


def _described_anew(run: Run, wanted: Mapping[str, dict[str, Any]], todo: Pending) -> list[dict[str, Any]]:
    """Items for the files that are known, and of which a list says something else now; they are not read again."""
    if not any(item["annotations"] for item in wanted.values()):
        return []
    names = ["source_id", "video_id", "size_bytes", "copy", "annotations", "attempt"]
    rows = read_table(run.root, "sources", names, where=pc.field("status") == "ok").to_pylist()
    found = []
    for row in rows:
        item = wanted.get(row["source_id"])
        if item and row["source_id"] not in todo.attempts and item["annotations"] not in ("", row["annotations"]):
            kept = {name: row[name] for name in ("video_id", "size_bytes", "copy")}
            found.append(item | kept | {"attempt": row["attempt"] + 1})
    return found


def _with_note(run: Run, result: StepResult, source: Source, wanted: Mapping[str, Any]) -> IngestResult:
    """The result with what people want to know: as what the source was read, and which files are copies of others."""
    notes = [result.note] if result.note else []
    if source.form not in ("a folder", "one file"):
        notes.append(f"read as {source.form}")
    copies = same_videos(run.root, wanted)
    num_copies = sum(len(paths) - 1 for paths in copies.values())
    if copies:
        first, second = next(iter(copies.values()))[:2]
        notes.append(f"{num_copies} of the files have the bytes of another, such as {second} those of {first}")
    return IngestResult(**dict(result, note="; ".join(notes)), num_copies=num_copies)


def same_videos(root: str, source_ids: Iterable[str]) -> dict[str, list[str]]:
    """Paths of the files that hold the same bytes, by their video id; of these sources."""
    wanted = pa.array(list(source_ids), pa.string())
    rows = read_table(root, "sources", ["source_id", "video_id", "path", "status"])
    rows = rows.filter(pc.field("source_id").isin(wanted) & (pc.field("status") == "ok")).sort_by("path")
    found: dict[str, list[str]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["video_id"], []).append(row["path"])
    return {video_id: paths for video_id, paths in found.items() if len(paths) > 1}


def _rows(folder: str, files: Iterable[SourceFile], known_urls: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What is known of each file before it is read: where it lies, and what its card and its list say."""
    cards: dict[str, SourceCard | None] = {}
    for file in files:
        try:
            owner = "" if file.error_type else _card_folder(folder, file, cards)
        except CardUnreachableError as err:
            file, owner = replace(file, error_type="unreadable", error=str(err)), ""
        card = cards.get(owner)
        path = file.place.removeprefix(owner.rstrip("/") + "/") if card else file.path
        yield {
            "source_id": known_urls.get(file.uri) or content_id(file.uri, file.size_bytes, file.mtime_ns),
            "uri": file.uri,
            "path": path,
            "size_bytes": file.size_bytes,
            "mtime_ns": file.mtime_ns,
            "source": card.name if card else PurePosixPath(folder).name,
            "license": card.license_of(path) if card else "",
            "card": card_uri(owner) if card else "",
            "annotations": _as_json(file.annotations),
            "sha256": file.sha256 or (card.file(path).sha256 if card else ""),
            "md5": file.md5,
            "archive": file.archive,
            "offset": file.offset,
            "error_type": file.error_type,
            "error": file.error,
        }


def _as_json(annotations: Sequence[Mapping[str, Any]]) -> str:
    """What a list says, as the table holds it; half a character, which JSON can spell, is none."""
    return json.dumps(annotations, ensure_ascii=False).encode("utf-8", "replace").decode() if annotations else ""


def _card_folder(folder: str, file: SourceFile, cards: dict[str, SourceCard | None]) -> str:
    """The nearest folder above the file, up to that of the source, with a source.yaml; `cards` keeps those read."""
    parent = file.place.rpartition("/")[0]
    if is_web(parent) and not file.place.startswith(folder.rstrip("/") + "/"):
        parent = folder  # whoever wrote the list knows what it names; strangers are not asked for a card
    while True:
        if parent not in cards:
            uri = card_uri(parent)
            cards[parent] = read_card(uri) if _card_exists(uri) else None
            _check_pins(uri, parent, cards[parent])
        if cards[parent] or parent == folder or not parent.startswith(folder.rstrip("/") + "/"):
            return parent
        parent = parent.rpartition("/")[0]


def _card_exists(uri: str) -> bool:
    """Whether there is a card; without an answer the file is not used, since the card might hold it out."""
    try:
        return storage.exists(uri)
    except Exception as err:  # each file system has its own
        raise CardUnreachableError(f"whether there is a {uri} cannot be told: {type(err).__name__}: {err}") from err


def _check_pins(uri: str, folder: str, card: SourceCard | None) -> None:
    """A pin with a misspelt name would do nothing, and its file might end in another split."""
    pinned = {pin.file for pin in card.splits} if card else set()
    known = (name for name in pinned if f"{SHARD}/" not in name)  # what is in an archive is not looked for
    if missing := sorted(name for name in known if not storage.exists(f"{folder}/{name}")):
        raise ValueError(
            f"{uri} pins the splits of files that are not there: {', '.join(missing)}. Correct splits[].file, which is "
            "relative to the folder of source.yaml, or remove the pins"
        )
