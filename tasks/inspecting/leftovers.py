"""Files of a root and the rows that name them; what no row names was left by a step that was killed, and can go."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import fsspec
import pyarrow.compute as pc

from tasks.captioning.answers import spent_answers
from tasks.tables import storage
from tasks.tables.appending import compacted_versions
from tasks.tables.delta import open_table, read_table
from tasks.tables.schemas import ID_COLUMNS, SCHEMAS

COPIED = "rows name files of another root, since this one was copied or moved: nothing can be told to be left over"
MEDIA_COLUMNS = {"sources": "copy", "clips": "uri", "models": "uri", "evaluations": "media", "generations": "uri"}


@dataclass(frozen=True)
class NamedFile:
    """A file that a row names."""

    row_id: str
    uri: str
    path: str  # on its file system
    size_bytes: int | None  # None where the table has no such column


def named_files(root: str, table: str, every_attempt: bool = False) -> list[NamedFile]:
    """Files named by the ok rows of a table; with `every_attempt` by all rows ever written."""
    column, id_column = MEDIA_COLUMNS[table], ID_COLUMNS[table]
    sized = ["size_bytes"] if "size_bytes" in SCHEMAS[table].names else []
    where = None if every_attempt else pc.field("status") == "ok"
    rows = read_table(root, table, [id_column, column, *sized], where=where, latest=not every_attempt)
    found = []
    for row in rows.to_pylist():
        uris = row[column] if isinstance(row[column], list) else [row[column]]
        found += [
            NamedFile(row[id_column], uri, storage.filesystem(uri)[1], row.get("size_bytes")) for uri in uris if uri
        ]
    return found


def media_files(root: str) -> dict[str, int]:
    """Size of every file under `<root>/media`, by path on its file system."""
    return _files(root, "media")


def _files(root: str, folder: str) -> dict[str, int]:
    fs, path = storage.filesystem(storage.join(root, folder))
    found = dict(fs.find(path, detail=True)) if fs.exists(path) else {}
    return {name: info["size"] for name, info in found.items()}


def unnamed_media(root: str, files: dict[str, int]) -> list[str]:
    """Media files that no row of any attempt names."""
    used = {file.path for table in MEDIA_COLUMNS for file in named_files(root, table, every_attempt=True)}
    return sorted(set(files) - used)


def is_copied(root: str, files: dict[str, int], unnamed: Sequence[str]) -> bool:
    """Whether rows name files, and none of those that lie here: then this root is a copy, or was moved."""
    nothing_named = bool(files) and len(unnamed) == len(files)
    return nothing_named and any(named_files(root, table) for table in MEDIA_COLUMNS)


def half_written(root: str) -> list[str]:
    """Files that were being written under models/ when their writer was killed."""
    return sorted(path for path in _files(root, "models") if "/.writing-" in path)


def unfinished_trainings(root: str) -> list[str]:
    """Folders under checkpoints/, one a training; a training that ends well removes its own."""
    fs, top = storage.filesystem(storage.join(root, "checkpoints"))
    return sorted(fs.ls(top, detail=False)) if fs.exists(top) else []


def empty_folders(root: str) -> list[str]:
    """Folders under media/ and models/ into which a killed writer had put nothing yet."""
    fs, top = storage.filesystem(root)
    places = [place for place in (f"{top}/media", f"{top}/models") if fs.exists(place)]
    found = [path for place in places for path in fs.find(place, withdirs=True) if "/.writing-" in path]
    return sorted(path for path in found if fs.isdir(path) and not fs.ls(path))


def unnamed_parquet(root: str, table: str, older_than_h: int = 0, delete: bool = False) -> list[str]:
    """Parquet files, relative to the table, that no version of it names; removed when `delete` says so."""
    delta = open_table(root, table)
    if delta is None:
        return []
    return delta.vacuum(
        older_than_h,
        dry_run=not delete,
        enforce_retention_duration=False,
        full=True,
        keep_versions=compacted_versions(delta) or None,
    )


def vacuum(root: str, older_than_h: int = 24, delete: bool = False) -> list[str]:
    """Left-over media and Parquet files, unfinished trainings, and a model's answers whose captions are in the table,
    untouched for so many hours; removed on `delete`.

    The age protects what a running step has written and not committed yet.

    Raises:
        ValueError: the rows name files of another root, so that everything here would seem left over.
    """
    fs, top = storage.filesystem(root)
    now = datetime.now(UTC)
    files = media_files(root)
    unnamed = unnamed_media(root, files)
    if is_copied(root, files, unnamed):
        raise ValueError(f"{COPIED} ({root})")
    left = [
        path
        for path in (
            *(*unnamed, *half_written(root), *unfinished_trainings(root), *empty_folders(root)),
            *spent_answers(root, _attempts(root, "captions")),
        )
        if (now - _last_touched(fs, path)).total_seconds() >= older_than_h * 3600
    ]
    if delete and left:
        fs.rm(left, recursive=True)
        _remove_empty_folders(fs, {path.rpartition("/")[0] for path in left})
    for table in SCHEMAS:
        found = unnamed_parquet(root, table, older_than_h)
        if delete and found:  # the log gets a commit of its own: not for nothing
            unnamed_parquet(root, table, older_than_h, delete=True)
        left += [f"{top}/tables/{table}/{name}" for name in found]
    return [path.removeprefix(top + "/") for path in left]


def _attempts(root: str, table: str) -> dict[str, int]:
    """Latest attempt by id."""
    rows = read_table(root, table, [ID_COLUMNS[table], "attempt"])
    return dict(zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True))


def _last_touched(fs: fsspec.AbstractFileSystem, path: str) -> datetime:
    """When a file, or any file in a folder, was written last."""
    return max([fs.modified(name) for name in fs.find(path)], default=None) or fs.modified(path)


def _remove_empty_folders(fs: fsspec.AbstractFileSystem, folders: set[str]) -> None:
    for folder in folders:
        if "/.writing-" in folder and fs.isdir(folder) and not fs.ls(folder):
            fs.rmdir(folder)
