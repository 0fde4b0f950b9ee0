"""Finding videos: every file that a source names gets a row with the content id of its bytes."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from pyramid_model.config import Config
from tasks import storage
from tasks.listing import NON_MEDIA, SourceFile, source_files
from tasks.pipeline import run_blocks
from tasks.source_card import SourceCard, card_uri, read_card
from tasks.step import Run, StepResult, step
from tasks.tables import bad_row, content_id, ok_row, pending

VERSION = "1"
CHUNK_BYTES = 4 * 2**20
NOT_COLUMNS = ("attempt", "sha256", "error_type", "error")  # of an item: it gives them to its row otherwise


class IngestConfig(Config):
    """Where videos come from."""

    source: str = Field("", description="folder of videos, .txt/.csv/.jsonl list, or one file; path or URI")
    non_media: tuple[str, ...] = Field(NON_MEDIA, description="suffixes of files in folders that are left out")
    block_size: int = Field(16, ge=1, description="files a block")


class CardUnreachableError(RuntimeError):
    """The file system of a file does not say whether a source.yaml describes it."""


class FileHasher:
    """Actor: reads each file once and gives it its content id."""

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Rows of `sources`, one an item."""
        return {"sources": [self._row(item) for item in items]}

    def _row(self, item: dict[str, Any]) -> dict[str, Any]:
        columns = {name: value for name, value in item.items() if name not in NOT_COLUMNS}
        if item.get("error_type"):
            return bad_row(item, (item["error_type"], item["error"]), video_id="", **columns)
        try:
            video_id, sha256, size_bytes = hash_file(item["uri"], want_sha256=bool(item["sha256"]))
        except Exception as err:
            # Each file system has its own exceptions; whichever comes says that this file cannot be read.
            kind = "missing" if isinstance(err, FileNotFoundError) else "unreadable"
            return bad_row(item, (kind, f"{type(err).__name__}: {err}"), video_id="", **columns)
        if size_bytes != item["size_bytes"]:
            grown = f"{size_bytes} bytes were read of a file of {item['size_bytes']}: it was being written"
            return bad_row(item, ("changed", grown), video_id="", **columns)
        if item["sha256"] and sha256 != item["sha256"].lower():
            differs = f"sha256 {sha256} is not that of source.yaml, {item['sha256']}"
            return bad_row(item, ("checksum", differs), video_id="", **columns)
        return ok_row(item, video_id=video_id, **columns)


def hash_file(uri: str, want_sha256: bool = False) -> tuple[str, str, int]:
    """(blake2b-128 hex, sha256 hex or "", size in bytes) of a file, read piece by piece."""
    fs, path = storage.filesystem(uri)
    digest, sha256, size_bytes = hashlib.blake2b(digest_size=16), hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            assert isinstance(chunk, bytes), "opened in binary mode"
            digest.update(chunk)
            size_bytes += len(chunk)
            if want_sha256:
                sha256.update(chunk)
    return digest.hexdigest(), sha256.hexdigest() if want_sha256 else "", size_bytes


@step
def ingest(run: Run, config: IngestConfig) -> StepResult:
    """Give every file of the source a row in `sources`; a file that has not changed since is not read again.

    Raises:
        ValueError: the source is missing or empty, or a source.yaml in it is wrong.
    """
    folder, files = source_files(config.source, run.root, config.non_media)
    wanted = {row["source_id"]: row for row in _rows(folder, files)}
    todo = pending(run.root, "sources", wanted, run.retry_failed)
    return run_blocks(
        run,
        config,
        step="ingest",
        step_version=VERSION,
        items=todo.items(wanted.values(), "source_id"),
        worker=FileHasher,
        worker_args={},
        num_done=todo.num_done,
        block_size=config.block_size,
    )


def _rows(folder: str, files: Iterable[SourceFile]) -> Iterator[dict[str, Any]]:
    """What is known of each file before it is read: where it lies, and what its card says."""
    cards: dict[str, SourceCard | None] = {}
    for file in files:
        try:
            owner = "" if file.error_type else _card_folder(folder, file, cards)
        except CardUnreachableError as err:
            file, owner = replace(file, error_type="unreadable", error=str(err)), ""
        card = cards.get(owner)
        path = file.uri.removeprefix(owner.rstrip("/") + "/") if card else file.path
        yield {
            "source_id": content_id(file.uri, file.size_bytes, file.mtime_ns),
            "uri": file.uri,
            "path": path,
            "size_bytes": file.size_bytes,
            "mtime_ns": file.mtime_ns,
            "source": card.name if card else PurePosixPath(folder).name,
            "license": card.license_of(path) if card else "",
            "card": card_uri(owner) if card else "",
            "sha256": card.file(path).sha256 if card else "",
            "error_type": file.error_type,
            "error": file.error,
        }


def _card_folder(folder: str, file: SourceFile, cards: dict[str, SourceCard | None]) -> str:
    """The nearest folder above the file, up to that of the source, with a source.yaml; `cards` keeps those read."""
    parent = file.uri.rpartition("/")[0]
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
    if missing := sorted(name for name in pinned if not storage.exists(f"{folder}/{name}")):
        raise ValueError(
            f"{uri} pins the splits of files that are not there: {', '.join(missing)}. Correct splits[].file, which is "
            "relative to the folder of source.yaml, or remove the pins"
        )
