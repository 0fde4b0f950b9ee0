"""Which files a source names: a folder is walked, a list is read, a file is itself."""

import csv
import io
import json
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from tasks import storage

NON_MEDIA = (
    *("yaml", "yml", "json", "jsonl", "csv", "tsv", "parquet", "xml", "toml", "ini", "cfg", "md", "txt", "log", "pdf"),
    *("html", "htm", "srt", "vtt", "ass", "ssa", "sub", "nfo", "sha256", "md5", "part", "py", "sh", "zip", "gz", "tar"),
    *("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "svg"),
)
LISTS = (".txt", ".csv", ".jsonl")
# What a root holds (docs/tables.md): what we wrote is no source.
OWN = ("tables", "media", "models", "checkpoints", "runs", "mlflow", "prefect", "report.html")


@dataclass(frozen=True)
class SourceFile:
    """A file that may be a video, or an entry of which it is known already that it is none."""

    uri: str
    path: str  # relative to the folder of the source
    size_bytes: int = 0  # 0 also where the file cannot be looked at: reading it will tell why
    mtime_ns: int = 0
    error_type: str = ""  # empty: it is to be read
    error: str = ""


def source_files(source: str, root: str, non_media: tuple[str, ...] = NON_MEDIA) -> tuple[str, list[SourceFile]]:
    """The folder of a source, and the files that it names.

    Args:
        source: a folder (walked with its subfolders), a .txt, .csv or .jsonl list, or one file; a path or fsspec URI.
        root: where our own tables and media lie; they are left out when the source contains them.
        non_media: suffixes of files in folders that are no candidates; nor are hidden files.

    Raises:
        ValueError: the source is not there, cannot be reached, or names no file.
    """
    if not source:
        raise ValueError("no source is given: name a folder of videos with --source or in ingest.source")
    if storage.is_local(source):
        source = str(Path(source.removeprefix("file://")).expanduser().resolve())
    if not _reachable(source, "exists"):
        raise ValueError(
            f"source {source!r} does not exist: give a folder of videos, a list, or a file (ingest.source)"
        )
    folder, found = _found(source, root, non_media)
    return printable(folder), found


def _reachable(source: str, question: Literal["exists", "isdir"]) -> bool:
    """What a file system answers about the source as a whole; each has exceptions of its own."""
    try:
        fs, path = storage.filesystem(source)
        return getattr(fs, question)(path)
    except Exception as err:
        raise ValueError(
            f"source {source!r} cannot be reached: {type(err).__name__}: {err}. Correct ingest.source"
        ) from err


def _found(source: str, root: str, non_media: tuple[str, ...]) -> tuple[str, list[SourceFile]]:
    if _reachable(source, "isdir"):
        found = [file for file in _walk(source, root) if _is_candidate(file.path, non_media)]
        if not found:
            raise ValueError(
                f"source {source!r} holds no video: no file in it or below is a candidate "
                f"(hidden files and .{', .'.join(non_media[:4])}, … do not count). Set ingest.source"
            )
        return source, found
    folder = source.rpartition("/")[0]
    if PurePosixPath(source).suffix.lower() not in LISTS:
        return folder, [_look(source, PurePosixPath(source).name)]
    found = list(_listed(source, folder))
    if not found:
        raise ValueError(f"list {source!r} names no file: write one path or URI a line (ingest.source)")
    return folder, found


def _is_candidate(path: str, non_media: tuple[str, ...]) -> bool:
    parts = PurePosixPath(path).parts
    return not any(part.startswith(".") for part in parts) and PurePosixPath(path).suffix[1:].lower() not in non_media


def printable(name: str) -> str:
    """A name that any table can hold: a byte that is not UTF-8, or is NUL, is written as `\\x` and two digits."""
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:  # half a character, which JSON can spell and no file name can hold
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def _walk(source: str, root: str) -> Iterator[SourceFile]:
    """Every file below a folder, in the order of the paths."""
    unreadable: dict[str, OSError] = {}
    tree = _local_tree(source, root, unreadable) if storage.is_local(source) else _remote_tree(source, root)
    for uri in sorted([*tree, *unreadable]):
        path = uri.removeprefix(source.rstrip("/") + "/")
        if uri in unreadable:
            yield _bad(uri, path, "unreadable", f"{type(unreadable[uri]).__name__}: {unreadable[uri]}")
        else:
            yield _look(uri, path)


def _local_tree(folder: str, root: str, unreadable: dict[str, OSError]) -> Iterator[str]:
    """Paths of the files in a folder and below it, also behind links, each folder once; never our own files.

    A folder that may not be opened lands in `unreadable`. Links come last, so that a folder keeps its own name.
    """

    def refused(err: OSError) -> None:
        if not _is_own(os.path.realpath(err.filename), root):
            unreadable[err.filename] = err

    seen: set[str] = set()
    tops = [folder]
    for top in tops:
        for parent, folders, names in os.walk(top, onerror=refused):
            real = os.path.realpath(parent)
            if real in seen or _is_own(real, root):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            for name in names:
                path, target = os.path.join(parent, name), os.path.join(real, name)
                if not _is_own(os.path.realpath(path) if os.path.islink(path) else target, root):
                    yield path


def _is_own(uri: str, root: str) -> bool:
    return any(uri == own or uri.startswith(f"{own}/") for own in (f"{root}/{name}" for name in OWN))


def _remote_tree(folder: str, root: str) -> list[str]:
    fs, path = storage.filesystem(folder)
    return [uri for name in fs.find(path) if not _is_own(uri := fs.unstrip_protocol(name), root)]


def _bad(uri: str, path: str, error_type: str, error: str) -> SourceFile:
    return SourceFile(printable(uri), printable(path), error_type=error_type, error=printable(error))


def _look(uri: str, path: str) -> SourceFile:
    """A file with size and time of change, or why it can be none."""
    if printable(uri) != uri:
        return _bad(uri, path, "bad_name", "the name is not UTF-8, or holds NUL: rename the file or the folder")
    try:
        return _look_local(uri, path) if _is_path(uri) else _look_remote(uri, path)
    except OSError:
        return SourceFile(uri, path)
    except (ValueError, ImportError) as err:  # an unknown scheme, or one whose package is not installed
        return _bad(uri, path, "bad_uri", f"{type(err).__name__}: {err}")
    except Exception as err:  # each file system has its own
        return _bad(uri, path, "unreadable", f"{type(err).__name__}: {err}")


def _is_path(uri: str) -> bool:
    return uri.startswith("/") or storage.is_local(uri)


def _look_local(uri: str, path: str) -> SourceFile:
    if "::" in uri:
        return _bad(uri, path, "bad_name", "'::' in a path would be read as a chain of file systems: rename it")
    found = os.stat(uri)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        return _bad(uri, path, "not_a_file", f"{uri} is {kind}, not a file")
    return SourceFile(uri, path, found.st_size, found.st_mtime_ns)


def _look_remote(uri: str, path: str) -> SourceFile:
    fs, name = storage.filesystem(uri)
    size_bytes = fs.size(name) or 0
    try:
        return SourceFile(uri, path, size_bytes, int(fs.modified(name).timestamp() * 1e9))
    except NotImplementedError:  # HTTP tells no time: a file replaced by one of the same size is not noticed
        return SourceFile(uri, path, size_bytes)


@dataclass(frozen=True)
class BadEntry:
    """An entry of a list that names no file."""

    text: str
    reason: str


def _listed(uri: str, folder: str) -> Iterator[SourceFile]:
    """The files of a list; what it gives without a scheme and a leading slash is relative to the list's folder."""
    read = {".txt": _text_entries, ".csv": _csv_entries, ".jsonl": _json_entries}[PurePosixPath(uri).suffix.lower()]
    for entry in read(_list_text(uri), uri):
        if isinstance(entry, BadEntry):
            yield _bad(f"{uri}#{entry.text}", entry.text, "bad_entry", entry.reason)
        else:
            full = _absolute(entry, folder)
            inside = full.startswith(f"{folder}/")
            yield _look(full, full.removeprefix(f"{folder}/") if inside else PurePosixPath(full).name)


def _list_text(uri: str) -> str:
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ValueError(f"list {uri} is not UTF-8 ({err.reason} at byte {err.start}): save it as UTF-8") from err
    except OSError as err:
        raise ValueError(f"list {uri} cannot be read: {err.strerror or err}") from err


def _absolute(entry: str, folder: str) -> str:
    """Path or URI of an entry, without `~` and `..`: one file has one name."""
    if printable(entry) != entry:
        return entry
    entry = os.path.expanduser(entry.removeprefix("file://"))
    uri = entry if "://" in entry or entry.startswith("/") else f"{folder}/{entry}"
    climbs = ".." in uri.split("/")
    if "://" in uri:
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://{posixpath.normpath(rest)}" if climbs else uri
    parent, name = os.path.split(uri)
    return os.path.join(os.path.realpath(parent) if climbs else os.path.normpath(parent), name)


def _text_entries(text: str, _: str) -> Iterator[str | BadEntry]:
    for line in io.StringIO(text, newline=None):
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def _csv_entries(text: str, uri: str) -> Iterator[str | BadEntry]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    try:
        names = reader.fieldnames or ()
    except csv.Error as err:
        raise ValueError(f"list {uri}, line 1: {err}") from err
    column = next((name for name in ("uri", "path") if name in names), "")
    if not column:
        raise ValueError(f"list {uri} has no column 'uri' or 'path': its first line is {names}")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            number = reader.reader.line_num  # the DictReader's own still stands at the line before
            yield BadEntry(f"line {number}", f"list {uri}, line {number}: {err}")
            continue
        entry = (row[column] or "").strip()
        message = f"list {uri}, line {reader.line_num}: the column {column!r} is empty"
        yield entry or BadEntry(",".join(str(value or "") for value in row.values()), message)


def _json_entries(text: str, uri: str) -> Iterator[str | BadEntry]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            wanted = f'list {uri}, line {number}: expected {{"uri": "…"}} or {{"path": "…"}}, got {line.strip()!r}'
            yield _json_entry(line) or BadEntry(line.strip(), wanted)


def _json_entry(line: str) -> str:
    """What a line names; empty when it is not JSON, or names nothing."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    entry = (row.get("uri") or row.get("path")) if isinstance(row, dict) else ""
    return entry.strip() if isinstance(entry, str) else ""
