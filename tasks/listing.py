"""Which files a source names: a folder is walked, a list is read, a file is itself."""

import csv
import io
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks import storage

NON_MEDIA = (
    *("yaml", "yml", "json", "jsonl", "csv", "tsv", "parquet", "xml", "toml", "ini", "cfg", "md", "txt", "log", "pdf"),
    *("html", "htm", "srt", "vtt", "ass", "ssa", "sub", "nfo", "sha256", "md5", "part", "py", "sh", "zip", "gz", "tar"),
    *("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "svg"),
)
LISTS = (".txt", ".csv", ".jsonl")
OWN_FOLDERS = ("tables", "media", "models", "runs", "mlflow")  # of a root: what we wrote is no source


@dataclass(frozen=True)
class SourceFile:
    """A file that may be a video."""

    uri: str
    path: str  # relative to the folder of the source
    size_bytes: int = 0  # 0 also where the file cannot be looked at: reading it will tell why
    mtime_ns: int = 0


def source_files(source: str, root: str, non_media: tuple[str, ...] = NON_MEDIA) -> tuple[str, list[SourceFile]]:
    """The folder of a source, and the files that it names.

    Args:
        source: a folder (walked with its subfolders), a .txt, .csv or .jsonl list, or one file; a path or fsspec URI.
        root: where our own tables and media lie; they are left out when the source contains them.
        non_media: suffixes of files in folders that are no candidates; nor are hidden files.

    Raises:
        ValueError: the source is not there, or names no file.
    """
    if not source:
        raise ValueError("no source is given: name a folder of videos with --source or in ingest.source")
    if storage.is_local(source):
        source = str(Path(source.removeprefix("file://")).expanduser().resolve())
    fs, path = storage.filesystem(source)
    if not fs.exists(path):
        raise ValueError(
            f"source {source!r} does not exist: give a folder of videos, a list, or a file (ingest.source)"
        )
    if fs.isdir(path):
        found = [file for file in _walk(source, root) if _is_candidate(file.path, non_media)]
        if not found:
            raise ValueError(
                f"source {source!r} holds no video: no file in it or below is a candidate "
                f"(hidden files and .{', .'.join(non_media[:4])}, … do not count). Set ingest.source"
            )
        return source, found
    folder = source.rpartition("/")[0]
    if PurePosixPath(source).suffix.lower() not in LISTS:
        file = _look(source, PurePosixPath(source).name)
        return folder, [file] if file else []
    found = [file for entry in _listed(source, folder) if (file := _look(entry.uri, entry.path))]
    if not found:
        raise ValueError(f"list {source!r} names no file: write one path or URI a line (ingest.source)")
    return folder, found


def _is_candidate(path: str, non_media: tuple[str, ...]) -> bool:
    parts = PurePosixPath(path).parts
    return not any(part.startswith(".") for part in parts) and PurePosixPath(path).suffix[1:].lower() not in non_media


def _walk(source: str, root: str) -> Iterator[SourceFile]:
    """Every file below a folder, in the order of the paths."""
    own = tuple(f"{root}/{name}/" for name in OWN_FOLDERS)
    for uri in sorted(_local_tree(source) if storage.is_local(source) else _remote_tree(source)):
        if not uri.startswith(own) and (
            file := _look(uri, uri.removeprefix(source.rstrip("/") + "/"), only_regular=True)
        ):
            yield file


def _local_tree(folder: str) -> Iterator[str]:
    unreadable: list[OSError] = []
    for parent, _, names in os.walk(folder, onerror=unreadable.append):
        yield from (os.path.join(parent, name) for name in names)
    # A folder that may not be opened is reported like a file that cannot be read.
    yield from (str(err.filename) for err in unreadable)


def _remote_tree(folder: str) -> list[str]:
    fs, path = storage.filesystem(folder)
    return [fs.unstrip_protocol(name) for name in fs.find(path)]


def _look(uri: str, path: str, only_regular: bool = False) -> SourceFile | None:
    """A file with size and time of change; None for pipes, sockets and the like with `only_regular`."""
    try:
        if not storage.is_local(uri):
            fs, name = storage.filesystem(uri)
            return SourceFile(uri, path, fs.size(name) or 0, int(fs.modified(name).timestamp() * 1e9))
        found = os.stat(uri)
    except (OSError, NotImplementedError):
        return SourceFile(uri, path)
    if only_regular and not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return None
    return SourceFile(uri, path, found.st_size, found.st_mtime_ns)


def _listed(uri: str, folder: str) -> Iterator[SourceFile]:
    """The files of a list; what it gives without a scheme and a leading slash is relative to the list's folder."""
    text = storage.read_bytes(uri).decode("utf-8-sig")
    read = {".txt": _text_entries, ".csv": _csv_entries, ".jsonl": _json_entries}[PurePosixPath(uri).suffix.lower()]
    for entry in read(text, uri):
        if "://" in entry or entry.startswith("/"):
            yield SourceFile(entry, PurePosixPath(entry).name)
        else:
            yield SourceFile(f"{folder}/{entry}", entry)


def _text_entries(text: str, _: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def _csv_entries(text: str, uri: str) -> Iterator[str]:
    reader = csv.DictReader(io.StringIO(text))
    column = next((name for name in ("uri", "path") if name in (reader.fieldnames or ())), "")
    if not column:
        raise ValueError(f"list {uri} has no column 'uri' or 'path': its first line is {reader.fieldnames}")
    yield from (row[column].strip() for row in reader if row[column] and row[column].strip())


def _json_entries(text: str, uri: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield row.get("uri") or row["path"]
        except (ValueError, KeyError, AttributeError) as err:
            raise ValueError(
                f'list {uri}, line {number}: expected {{"uri": …}} or {{"path": …}}, got {line!r}'
            ) from err
