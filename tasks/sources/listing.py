"""Which files a source names: a folder is walked, a list is read, a file is itself."""

import functools
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from tasks.sources.archives import members
from tasks.sources.fetch import FetchConfig, FetchError, Look, is_web, look
from tasks.sources.lists import HEAD_BYTES, BadEntry, Entry, is_page, list_kind, read_list
from tasks.tables import storage

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
NON_MEDIA = (
    *("yaml", "yml", "json", "jsonl", "csv", "tsv", "parquet", "xml", "toml", "ini", "cfg", "md", "txt", "log", "pdf"),
    *("html", "htm", "srt", "vtt", "ass", "ssa", "sub", "nfo", "sha256", "md5", "part", "py", "sh", "zip", "gz", "tar"),
    "svg",
    *IMAGES,
)
WEB = FetchConfig()
LOOKS = 16  # files looked at together, since an object store takes its time to answer
SHARD = ".tar"  # in a folder its members count, not itself
PACKED = (".tar.gz", ".tgz")  # shards that must be unpacked before their members can be found
SHARDS = "WebDataset shards"
# What a root holds (docs/tables.md): what we wrote is no source.
OWN = ("tables", "media", "models", "checkpoints", "cache", "runs", "mlflow", "prefect", "report.html")


@dataclass(frozen=True)
class SourceFile:
    """A file that may be a video, or an entry of which it is known already that it is none."""

    uri: str
    path: str  # relative to the folder of the source
    size_bytes: int = 0  # 0 also where the file cannot be looked at: reading it will tell why
    mtime_ns: int = 0
    error_type: str = ""  # empty: it is to be read
    error: str = ""
    annotations: tuple[dict[str, Any], ...] = ()  # what a list says of it, as `tasks.sources.lists.Entry`
    sha256: str = ""
    md5: str = ""
    archive: str = ""  # the tar file that holds it, from this byte on
    offset: int = 0

    @property
    def place(self) -> str:
        """Where it lies in the tree of folders; an archive counts as a folder."""
        return f"{self.archive}/{self.uri.removeprefix('tar://').partition('::')[0]}" if self.archive else self.uri


class Source(NamedTuple):
    """What a source turned out to be."""

    folder: str
    files: list[SourceFile]
    form: str  # as people call it


def source_files(
    source: str,
    root: str,
    non_media: tuple[str, ...] = NON_MEDIA,
    media_root: str = "",
    web: FetchConfig = WEB,
) -> Source:
    """The folder of a source, the files that it names, and what it was taken for.

    Args:
        source: a folder (walked with its subfolders), a list (see `lists`), or one file; a path or fsspec URI.
        root: where our own tables and media lie; they are left out when the source contains them.
        non_media: suffixes of files in folders that are no candidates; nor are hidden files.
        media_root: where the relative names of a list start; empty: at the folder of the list.
        web: how often a web host is asked, and how patiently.

    Raises:
        ValueError: the source is not there, cannot be reached, or names no file.
    """
    if not source:
        raise ValueError("no source is given: name a folder of videos with --source or in ingest.source")
    if storage.is_local(source):
        source = str(Path(source.removeprefix("file://")).expanduser().resolve())
    seen = _web_look(source, web) if is_web(source) else None
    if not seen and not _reachable(source, "exists"):
        raise _no_source(source)
    is_folder = _reachable(source, "isdir") if not seen or seen.is_html else False
    folder, found, form = _found(source, is_folder, seen.head if seen else None, root, non_media, media_root)
    return Source(printable(folder), found, form)


def _no_source(source: str) -> ValueError:
    return ValueError(f"source {source!r} does not exist: give a folder of videos, a list, or a file (ingest.source)")


def _web_look(source: str, web: FetchConfig) -> Look:
    """What one request tells of a source: how it begins, and whether it may be an index of files."""
    try:
        return look(source, HEAD_BYTES, web, web.own_budget())
    except FetchError as err:
        if err.kind == "missing":
            raise _no_source(source) from err
        raise ValueError(f"source {source!r} cannot be reached: {err}. Correct ingest.source") from err


def _reachable(source: str, question: Literal["exists", "isdir"]) -> bool:
    """What a file system answers about the source as a whole; each has exceptions of its own."""
    try:
        fs, path = storage.filesystem(source)
        return getattr(fs, question)(path)
    except Exception as err:
        raise ValueError(
            f"source {source!r} cannot be reached: {type(err).__name__}: {err}. Correct ingest.source"
        ) from err


def _found(
    source: str, is_folder: bool, head: bytes | None, root: str, non_media: tuple[str, ...], media_root: str
) -> Source:
    if is_folder:
        walked = [file for file in _walk(source, root) if _is_candidate(file.path, non_media)]
        found = _with_members(walked)
        if not found:
            raise ValueError(
                f"source {source!r} holds no video: no file in it or below is a candidate "
                f"(hidden files and .{', .'.join(non_media[:4])}, … do not count). Set ingest.source"
            )
        return Source(source, found, SHARDS if any(file.archive for file in found) else "a folder")
    folder = source.rpartition("/")[0]
    kind = list_kind(source, head)
    if kind == "tar" or source.lower().endswith((SHARD, *PACKED)):  # a damaged one does not show what it is
        found = list(_members(_look(source, PurePosixPath(source).name)))
        if not found:
            raise ValueError(f"archive {source!r} holds no video: none of its members has the suffix of one")
        return Source(folder, found, SHARDS)
    if not kind:
        return Source(folder, [_look(source, PurePosixPath(source).name)], "one file")
    form, entries = read_list(source, kind)
    media = MediaFolder(_media_folder(media_root) or folder, form.from_dataset)
    found = _with_members(_listed(source, folder, entries, media))
    if not found:
        raise ValueError(f"list {source!r} names no file: write one path or URI a line (ingest.source)")
    return Source(folder, found, f"{form.name} ({kind.upper()})")


def _media_folder(media_root: str) -> str:
    """media_root as an absolute folder.

    Raises:
        ValueError: there is no such folder.
    """
    if not media_root:
        return ""
    if storage.is_local(media_root):
        media_root = str(Path(media_root.removeprefix("file://")).expanduser().resolve())
    if not _reachable(media_root, "isdir"):
        raise ValueError(f"media_root {media_root!r} is no folder: name that of the videos with ingest.media_root")
    return media_root.rstrip("/")


def _is_candidate(path: str, non_media: tuple[str, ...]) -> bool:
    parts = PurePosixPath(path).parts
    suffix = PurePosixPath(path).suffix.lower()
    return not any(part.startswith(".") for part in parts) and (suffix == SHARD or suffix[1:] not in non_media)


def _with_members(files: Iterable[SourceFile]) -> list[SourceFile]:
    """The files, and in place of each archive the videos in it."""
    return [one for file in files for one in (_members(file) if file.uri.lower().endswith(SHARD) else [file])]


def _members(archive: SourceFile) -> Iterator[SourceFile]:
    """The videos of a WebDataset shard; what is wrong with it comes after those that could be found."""
    if archive.error_type:
        yield archive
        return
    try:
        for member in members(archive.uri):
            uri, path = f"tar://{member.name}::{archive.uri}", f"{archive.path}/{member.name}"
            if printable(uri) != uri or "::" in member.name:
                yield _bad(uri, path, "bad_name", "the name of the member is not UTF-8, or holds NUL or '::'")
            elif member.problem:
                yield _bad(uri, path, "not_a_file", member.problem)
            else:
                times = {"size_bytes": member.size_bytes, "mtime_ns": archive.mtime_ns}
                where = {"archive": archive.uri, "offset": member.offset}
                yield SourceFile(uri, path, **times, **where, annotations=member.annotations)
    except ValueError as err:
        yield _bad(archive.uri, archive.path, "bad_archive", str(err))


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
        if is_web(uri):  # asked only once, when it is fetched: what a URL gave is taken to stay
            urlsplit(uri)  # raises where it is none
            return SourceFile(uri, path)
        return _look_local(uri, path) if _is_path(uri) else _look_remote(uri, path)
    except OSError:
        return SourceFile(uri, path)
    except (ValueError, ImportError) as err:  # no URL, an unknown scheme, or one whose package is not installed
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


def _listed(uri: str, folder: str, entries: Iterable[Entry | BadEntry], media: "MediaFolder") -> Iterator[SourceFile]:
    """The files of a list, in its order; what it says of one file in several rows comes together."""
    found: dict[str, SourceFile] = {}
    others: list[SourceFile] = []
    with ThreadPoolExecutor(LOOKS) as pool:
        files = list(pool.map(lambda entry: _entry_file(uri, folder, entry, media), entries))
    for file in files:
        if not file.annotations:
            others.append(file)
            continue
        before = found.get(file.uri)
        found[file.uri] = replace(file, annotations=before.annotations + file.annotations) if before else file
    yield from found.values()
    yield from others


def _entry_file(uri: str, folder: str, entry: Entry | BadEntry, media: "MediaFolder") -> SourceFile:
    if isinstance(entry, BadEntry):
        return _bad(f"{uri}#{entry.text}", entry.text, "bad_entry", entry.reason)
    if not storage.is_local(uri) and any(map(_is_of_this_machine, (entry.name, entry.url))):
        elsewhere = f"{uri} comes from elsewhere and may not name files of this machine: copy the list here first"
        return _bad(f"{uri}#{entry.name}", entry.name, "bad_entry", elsewhere)
    full = media.find(entry.name)
    if not full and is_page(entry.url):
        missing = (
            f"no {entry.name}.mp4 under {media.folder} (ingest.media_root), and {entry.url} is a page, from which no "
            "file can be fetched: download the video yourself"
        )
        return _bad(entry.url, entry.name, "not_downloaded", missing)
    full = full or entry.url or _absolute(entry.name, media.folder)
    inside = full.startswith(f"{folder}/")
    file = _look(full, full.removeprefix(f"{folder}/") if inside else PurePosixPath(full).name)
    return replace(file, annotations=entry.annotations, sha256=entry.sha256, md5=entry.md5)


def _is_of_this_machine(name: str) -> bool:
    return name.startswith(("/", "~")) or "::" in name or ("://" in name and storage.is_local(name))


class MediaFolder:
    """Where the relative names of a list lead to.

    Args:
        folder: media_root, or the folder of the list.
        anywhere: names of published data sets are also found in subfolders, and without their suffix.
    """

    def __init__(self, folder: str, anywhere: bool):
        self.folder, self.anywhere = folder, anywhere and not is_web(folder)

    def find(self, name: str) -> str:
        """The file of that name; empty when it is one of a data set and not there."""
        direct = _absolute(name, self.folder)
        if not self.anywhere or printable(name) != name or "://" in name or name.startswith(("/", "~")):
            return direct
        if storage.is_local(direct) and os.path.isfile(direct):
            return direct
        keys = (direct, PurePosixPath(name).name, f"{name}/")
        return next((uri for key in keys if (uri := self._below.get(key, ""))), "")

    @functools.cached_property
    def _below(self) -> dict[str, str]:
        """Every file below the folder by its URI, its name, and its name without the suffix and with a slash.

        Two files of one name have none: which of them is meant cannot be told.
        """
        fs, top = storage.filesystem(self.folder)
        found: dict[str, str] = {}
        for path in fs.find(top) if fs.isdir(top) else []:
            name, uri = PurePosixPath(path), path if storage.is_local(self.folder) else fs.unstrip_protocol(path)
            if name.suffix[1:].lower() not in NON_MEDIA and printable(uri) == uri:
                for key in (uri, name.name, f"{name.stem}/"):
                    found[key] = "" if key in found else uri
        return found


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
