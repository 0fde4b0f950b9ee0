"""Step `ingest`: every file of a source gets a row in `sources`, with a hash of its bytes as `video_id`."""

import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Literal, NotRequired
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from pyramid_model.config import NOT_IDENTITY, Config
from tasks.running.cluster import connect
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult
from tasks.running.step import step
from tasks.running.work import PerItemWork, Produced
from tasks.sources.card import card_uri
from tasks.sources.fetch import FetchConfig, FetchError, Sink, fetch, is_web, read_file
from tasks.sources.folder_cards import CardUnreachableError, FolderCards
from tasks.sources.list_formats import Annotation
from tasks.sources.listing import Source, SourceFile, source_files
from tasks.sources.trees import IMAGES, NON_MEDIA
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.tables.host_budget import Budget, SharedBudget
from tasks.tables.newest import ORDER, newest_by
from tasks.tables.pending import Pending, pending
from tasks.tables.rows import Row, SourceColumns, SourceRow, as_rows, bad_row, ok_row
from tasks.tables.url_secrets import check_public, from_environment, without_secrets
from tasks.tables.web_hosts import Allowed, addresses_now

VERSION = "1"
MAX_BLOCK_BYTES = 4 * 2**30  # a block is read, and so committed, within minutes even from a slow disk
# Keys of an item that are not copied into its row.
NOT_COLUMNS = ("attempt", "request", "sha256", "md5", "archive", "offset", "error_type", "error")


class IngestConfig(Config):
    """The source of the videos, and how files are read from it."""

    source: str = Field(default="", description="folder of videos, list or annotation file, or one file; path or URI")
    media_root: str = Field(default="", description="folder of relative paths in a list; empty: that of the list")
    non_media: tuple[str, ...] = Field(default=NON_MEDIA, description="suffixes of files that are ignored in folders")
    images: bool = Field(default=False, description="also read pictures in folders; each is a video of one frame")
    columns: dict[Literal["media", "text", "start", "end"], str] = Field(
        default={},
        description="columns of a list whose names are not known, e.g. {media: clip_name, text: words, start: from_s}",
    )
    copies: Literal["web", "remote", "none"] = Field(
        default="web", description="which files are copied to media/sources: from the web, all remote files, or none"
    )
    fetch: FetchConfig = Field(default=FetchConfig(), json_schema_extra=NOT_IDENTITY)
    block_size: int = Field(
        default=16,
        ge=1,
        description="files in a block, which is computed and committed together",
        json_schema_extra=NOT_IDENTITY,
    )

    @field_validator("source", "media_root")
    @classmethod
    def _public(cls, url: str) -> str:
        return check_public(url)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Suffixes of files in folders that are left out."""
        return tuple(suffix for suffix in self.non_media if not (self.images and suffix in IMAGES))


class SourceItem(SourceColumns):
    """Work item of `FileHasher`: a file of the source, with the values of its card and its list.

    request: URL with its secrets, "" if `uri` has everything. sha256, md5: expected checksums, "" if unknown. archive,
    offset, error_type, error: as in `SourceFile`. video_id, copy, attempt: of a file that an earlier run has read and
    that is not read again.
    """

    request: str
    sha256: str
    md5: str
    archive: str
    offset: int
    error_type: str
    error: str
    video_id: NotRequired[str]
    copy: NotRequired[str]
    attempt: NotRequired[int]


class FileHasher:
    """Actor: reads each file once, computes its `video_id`, and stores a copy of it if the settings require one.

    Args:
        config: settings of the step.
        media: URI of the folder of copies.
        budget: rate limits shared by all actors; None: limits of this process alone.
        limit_s: longest time to fetch one file, so that a block ends within `ray.no_progress_timeout_s`.
    """

    def __init__(self, config: IngestConfig, media: str, budget: Budget | None = None, limit_s: float = math.inf):
        self.config, self.media, self.limit_s = config, media, limit_s
        self.budget = budget or config.fetch.process_budget()

    def __call__(self, items: Sequence[SourceItem]) -> Produced:
        """Rows of `sources`, one per item."""
        if not any(is_web(item["uri"]) for item in items):
            return Produced({"sources": [self._row(item) for item in items]})
        with ThreadPoolExecutor(self.config.fetch.connections) as pool:
            return Produced({"sources": list(pool.map(self._row, items))})

    def _row(self, item: SourceItem) -> Row:
        columns: Row = {name: value for name, value in item.items() if name not in NOT_COLUMNS}
        if item.get("error_type"):
            return bad_row(item, (item["error_type"], item["error"]), video_id="", **columns)
        if item.get("video_id"):  # read by an earlier run; only its annotations changed
            return ok_row(item, **columns)
        if not self._is_copied(item):
            return self._read_row(item, columns, "")
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=self._staging()) as folder:
            suffix = PurePosixPath(urlsplit(item["uri"]).path if is_web(item["uri"]) else item["path"]).suffix
            path = os.path.join(folder, "copy" + (suffix if re.fullmatch(r"\.\w{1,8}", suffix) else ""))
            open(path, "wb").close()
            return self._read_row(item, columns, path)

    def _is_copied(self, item: SourceItem) -> bool:
        if item["archive"]:  # decoders cannot read a member of an archive
            return True
        if is_web(item["uri"]):
            # Only ingest has the list of allowed hosts and the signatures of URLs: later steps could not read these.
            return self.config.copies != "none" or bool(item["request"]) or bool(addresses_now(item["uri"]))
        return self.config.copies == "remote" and not storage.is_local(item["uri"])

    def _staging(self) -> str | None:
        """Local folder in which copies are written, on the disk of `media`, so that a rename completes them."""
        if not storage.is_local(self.media):
            return None
        folder = storage.filesystem(self.media)[1]
        os.makedirs(folder, exist_ok=True)
        return folder

    def _read_row(self, item: SourceItem, columns: Row, path: str) -> Row:
        """Read a file; returns its row. path: existing local file for a copy; "": no copy."""
        sums = tuple(name for name in ("sha256", "md5") if item[name])
        sink = Sink(path, sums)
        try:
            self._read(item, sink)
        except Exception as err:
            if isinstance(err, OSError) and err.errno == errno.ENOSPC:
                raise  # an error of this machine, such as a full disk, not of the file
            # Each file system has its own exceptions; all of them mean that this file cannot be read.
            kind = "missing" if isinstance(err, FileNotFoundError) else getattr(err, "kind", "unreadable")
            text = str(err) if isinstance(err, FetchError) else f"{type(err).__name__}: {err}"
            return bad_row(item, (kind, text), video_id="", **columns)
        size_bytes = sink.size_bytes if is_web(item["uri"]) else item["size_bytes"]
        columns = columns | {"size_bytes": size_bytes}
        if problem := _problem(item, sink, size_bytes):
            return bad_row(item, problem, video_id="", **columns)
        copy = f"{self.media}/{sink.video_id}{PurePosixPath(path).suffix}" if path else ""
        if copy:
            storage.publish(path, copy)
        return ok_row(item, video_id=sink.video_id, copy=copy, **columns)

    def _read(self, item: SourceItem, sink: Sink) -> None:
        if is_web(item["uri"]):
            fetch(item["request"] or item["uri"], sink, self.config.fetch, self.budget, self.limit_s)
        elif item["archive"]:
            read_file(item["archive"], sink, item["offset"], item["size_bytes"], self.config.fetch.allow_hosts)
        else:
            read_file(item["uri"], sink)


def _problem(item: SourceItem, sink: Sink, size_bytes: int) -> tuple[str, str] | None:
    """(error_type, sentence) if a file that was read has another size or checksum than expected, else None."""
    if sink.size_bytes != size_bytes:
        return "changed", f"{sink.size_bytes} bytes were read of a file of {size_bytes}: it changed while it was read"
    for name in sink.sums:
        if sink.sum(name) != item[name].lower():
            return "checksum", f"{name} {sink.sum(name)} differs from that of source.yaml or of the list, {item[name]}"
    return None


def hash_file(uri: str, hosts: Allowed = ()) -> tuple[str, int]:
    """(blake2b-128 hex, size in bytes) of a file. hosts: as `storage.filesystem`."""
    sink = Sink()
    read_file(uri, sink, hosts=hosts)
    return sink.video_id, sink.size_bytes


class IngestResult(StepResult):
    """Result of the ingest step."""

    num_copies: int = Field(default=0, description="files with the same bytes as another file")


@step
def ingest(run: Run, config: IngestConfig) -> IngestResult:
    """Give every file of the source a row in `sources`. Files that did not change are not read again.

    Raises:
        ValueError: the source is missing or empty, or a source.yaml in it has errors.
    """
    typed, media_root = from_environment(config.source), from_environment(config.media_root)
    web = config.fetch.trusting(typed, media_root)
    source = source_files(typed, run.root, config.left_out, media_root, web, config.columns)
    items_by_id = {
        row["source_id"]: row
        for row in _rows(source.folder, source.files, _ids_of_urls(run, source.files), web.allow_hosts)
    }
    todo = pending(run.root, "sources", items_by_id, run.retry_failed)
    redescribed = _redescribed(run, items_by_id, todo)
    items = todo.items(items_by_id.values(), "source_id")
    budget = _budget(run, config, items)
    work = PerItemWork(
        step="ingest",
        version=VERSION,
        config=config,
        worker=partial(
            FileHasher,
            config=config.model_copy(update={"fetch": web}),
            media=run.media("sources"),
            budget=budget,
            limit_s=0.9 * run.ray.no_progress_timeout_s,
        ),
        done_table="sources",
        since={"sources": todo.version},
        # Downloads may be slow: all files of a block are fetched at the same time.
        block_size=min(config.block_size, config.fetch.connections) if budget else config.block_size,
        max_block_bytes=MAX_BLOCK_BYTES,
    )
    result = run_blocks(run, work, items + redescribed, todo.num_done - len(redescribed))
    return _with_note(run, result, source, items_by_id)


def _budget(run: Run, config: IngestConfig, items: Sequence[SourceItem]) -> Budget | None:
    """Rate limits shared by all actors; None if no file comes from a web host."""
    if not any(is_web(item["uri"]) for item in items):
        return None
    connect(run.ray)
    return SharedBudget(config.fetch.process_budget())


def _ids_of_urls(run: Run, files: Sequence[SourceFile]) -> dict[str, str]:
    """Source id by URL of the URLs that were ingested before. They are not requested again."""
    urls = [file.uri for file in files if is_web(file.uri)]
    if not urls:
        return {}
    of_urls = pc.field("uri").isin(pa.array(urls, pa.string()))
    rows = newest_by(read_table(run.root, "sources", ["uri", "source_id", *ORDER], where=of_urls), ["uri"])
    return dict(zip(rows["uri"].to_pylist(), rows["source_id"].to_pylist(), strict=True))


def _redescribed(run: Run, items_by_id: Mapping[str, SourceItem], todo: Pending) -> list[SourceItem]:
    """Items of ingested files whose annotations in a list changed; these files are not read again."""
    if not any(item["annotations"] for item in items_by_id.values()):
        return []
    names = ["source_id", "video_id", "size_bytes", "copy", "annotations", "attempt"]
    rows = read_table(run.root, "sources", names, where=pc.field("status") == "ok")
    items: list[SourceItem] = []
    for row in as_rows(rows, SourceRow):
        item = items_by_id.get(row["source_id"])
        if item and row["source_id"] not in todo.attempts and item["annotations"] not in ("", row["annotations"]):
            items.append(
                {
                    **item,
                    "video_id": row["video_id"],
                    "size_bytes": row["size_bytes"],
                    "copy": row["copy"],
                    "attempt": row["attempt"] + 1,
                }
            )
    return items


def _with_note(run: Run, result: StepResult, source: Source, source_ids: Iterable[str]) -> IngestResult:
    """The result with a note about the kind of the source and about files with equal bytes."""
    notes = [result.note] if result.note else []
    if source.form not in ("a folder", "one file"):
        notes.append(f"read as {source.form}")
    notes += source.notes
    copies = same_videos(run.root, source_ids)
    num_copies = sum(len(paths) - 1 for paths in copies.values())
    if copies:
        first, second = next(iter(copies.values()))[:2]
        notes.append(f"{num_copies} of the files have the same bytes as another, such as {second} and {first}")
    return IngestResult(**dict(result, note="; ".join(notes)), num_copies=num_copies)


def same_videos(root: str, source_ids: Iterable[str]) -> dict[str, list[str]]:
    """Paths by video id of those of these sources that have the same bytes as another one."""
    of_sources = pa.array(list(source_ids), pa.string())
    rows = read_table(root, "sources", ["source_id", "video_id", "path", "status"])
    rows = rows.filter(pc.field("source_id").isin(of_sources) & (pc.field("status") == "ok")).sort_by("path")
    paths_of: dict[str, list[str]] = {}
    for row in as_rows(rows, SourceRow):
        paths_of.setdefault(row["video_id"], []).append(row["path"])
    return {video_id: paths for video_id, paths in paths_of.items() if len(paths) > 1}


def _rows(
    folder: str, files: Iterable[SourceFile], ids_of_urls: Mapping[str, str], hosts: Allowed = ()
) -> Iterator[SourceItem]:
    """Work items of the files of a source.

    Args:
        folder: of the source.
        files: of the source.
        ids_of_urls: source ids of URLs that were ingested before.
        hosts: that may be asked for cards, as `storage.filesystem`.
    """
    cards = FolderCards(folder, hosts)
    for file in files:
        try:
            owner, card = ("", None) if file.error_type else cards.of(file.place)
        except CardUnreachableError as err:
            file, owner, card = replace(file, error_type="unreadable", error=str(err)), "", None
        path = without_secrets(file.place).removeprefix(f"{without_secrets(owner).rstrip('/')}/") if card else file.path
        yield {
            "source_id": ids_of_urls.get(file.uri) or content_id(file.uri, file.size_bytes, file.mtime_ns),
            "uri": file.uri,
            "path": path,
            "size_bytes": file.size_bytes,
            "mtime_ns": file.mtime_ns,
            "source": card.name if card else PurePosixPath(without_secrets(folder)).name,
            "license": card.license_of(path) if card else "",
            "card": without_secrets(card_uri(owner)) if card else "",
            "annotations": _as_json(file.annotations),
            "request": file.request,
            "sha256": file.sha256 or (card.file(path).sha256 if card else ""),
            "md5": file.md5,
            "archive": file.archive,
            "offset": file.offset,
            "error_type": file.error_type,
            "error": file.error,
        }


def _as_json(annotations: Sequence[Annotation]) -> str:
    """JSON of the column `annotations`. A lone surrogate, which JSON can contain, becomes `?`."""
    return json.dumps(annotations, ensure_ascii=False).encode("utf-8", "replace").decode() if annotations else ""
