"""The files of a source: all files of a folder, the entries of a list, the videos of an archive, or one file."""

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from tasks.sources.archives import members
from tasks.sources.entry_names import foreign, is_of_this_machine, printable
from tasks.sources.fetch import FetchConfig, FetchError, Look, is_web, look
from tasks.sources.folder_captions import captions_beside, with_prompts
from tasks.sources.list_formats import Annotation, BadEntry, Columns, Entry, is_page
from tasks.sources.lists import HEAD_BYTES, list_kind, read_list
from tasks.sources.media_folder import MediaFolder, absolute_name
from tasks.sources.trees import NON_MEDIA, SHARD, is_candidate, local_tree, remote_tree
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.url_secrets import text_without_secrets, without_secrets
from tasks.tables.web_hosts import Allowed

WEB = FetchConfig()
LOOKS = 16  # files whose size is requested at once, since object stores answer slowly
PACKED = (".tar.gz", ".tgz")  # suffixes of compressed archives, which are an error: they must be unpacked first
SHARDS = "WebDataset shards"


@dataclass(frozen=True)
class SourceFile:
    """A file that may be a video, or an entry of a source that cannot be used as a video."""

    uri: str
    path: str  # relative to the folder of the source
    size_bytes: int = 0  # 0 also if the size is unknown; reading the file gives the error
    mtime_ns: int = 0
    error_type: str = ""  # empty: the file can be read
    error: str = ""
    annotations: tuple[Annotation, ...] = ()
    request: str = ""  # URL with its password or signature, which `uri` leaves out; empty: `uri` has everything
    sha256: str = ""
    md5: str = ""
    archive: str = ""  # URI of the tar file that contains it
    offset: int = 0  # byte in the archive at which it starts

    @property
    def place(self) -> str:
        """Its path in the tree of folders; an archive counts as a folder."""
        if self.archive:
            return f"{self.archive}/{self.uri.removeprefix('tar://').partition('::')[0]}"
        return self.request or self.uri


class Source(NamedTuple):
    """Folder and files of a source. form: kind of the source, for messages. notes: sentences for people."""

    folder: str
    files: list[SourceFile]
    form: str
    notes: tuple[str, ...] = ()


def source_files(
    source: str,
    root: str,
    non_media: tuple[str, ...] = NON_MEDIA,
    media_root: str = "",
    web: FetchConfig = WEB,
    columns: Columns | None = None,
) -> Source:
    """The folder, the files and the kind of a source.

    Args:
        source: a folder (with its subfolders), a list (see `lists`), an archive, or one file; path or fsspec URI.
        root: of the tables and media; these are left out if the source contains them.
        non_media: suffixes of files in folders that are left out; hidden files are left out, too.
        media_root: folder that the relative names of a list start from; empty: the folder of the list.
        web: limits for requests to web hosts.
        columns: of lists, as `list_formats.renamed`.

    Raises:
        ValueError: the source does not exist, cannot be reached, or contains no file.
    """
    if not source:
        raise _none_given()
    if storage.is_local(source):
        source = str(Path(source.removeprefix("file://")).expanduser().resolve())
    web = web.trusting(source, media_root)
    beginning = _web_look(source, web) if is_web(source) else None
    hosts = web.allow_hosts
    if not beginning and not _reachable(source, "exists", hosts):
        raise _no_source(source)
    is_folder = _reachable(source, "isdir", hosts) if not beginning or beginning.is_html else False
    head = beginning.head if beginning else None
    options = Options(root, non_media, media_root, hosts, columns or {})
    found = _folder(source, options) if is_folder else _file(source, head, options)
    return found._replace(folder=printable(found.folder))


class Options(NamedTuple):
    """How a source is read: arguments of `source_files`; hosts as in `storage.filesystem`."""

    root: str
    non_media: tuple[str, ...]
    media_root: str
    hosts: Allowed
    columns: Columns


def _no_source(source: str) -> ValueError:
    return ValueError(f"source {source!r} does not exist: give a folder of videos, a list, or a file (ingest.source)")


def _no_video(source: str, non_media: tuple[str, ...]) -> ValueError:
    return ValueError(
        f"source {source!r} holds no video: no file in it or in its subfolders can be one "
        f"(hidden files and .{', .'.join(non_media[:4])}, … are left out). Set ingest.source"
    )


def check_local_source(source: str, root: str, non_media: tuple[str, ...] = NON_MEDIA) -> None:
    """Raise an error for a missing local source or a folder without a candidate; stops at the first candidate.

    Raises:
        ValueError: as `source_files`, which lists the whole source.
    """
    if not source:
        raise _none_given()
    path = Path(source.removeprefix("file://")).expanduser().resolve()
    if not path.exists():
        raise _no_source(str(path))
    if path.is_dir():
        files = (os.path.relpath(file, path) for file in local_tree(str(path), root, {}))
        if not any(is_candidate(file, non_media) for file in files):
            raise _no_video(str(path), non_media)


def _none_given() -> ValueError:
    return ValueError("no source is given: name a folder of videos with --source or in ingest.source")


def _web_look(source: str, web: FetchConfig) -> Look:
    """Beginning of a source on a web host. An HTML page may be an index of files."""
    try:
        return look(source, HEAD_BYTES, web, web.process_budget())
    except FetchError as err:
        if err.kind == "missing":
            raise _no_source(source) from err
        raise ValueError(f"source {source!r} cannot be reached: {err}. Correct ingest.source") from err


def _reachable(source: str, question: Literal["exists", "isdir"], hosts: Allowed) -> bool:
    """Whether a source exists, or is a folder. hosts: as `storage.filesystem`.

    Raises:
        ValueError: its file system cannot be reached; each has its own exceptions.
    """
    try:
        fs, path = storage.filesystem(source, hosts)
        return getattr(fs, question)(path)
    except Exception as err:
        raise ValueError(
            f"source {source!r} cannot be reached: {type(err).__name__}: {err}. Correct ingest.source"
        ) from err


def _folder(source: str, options: Options) -> Source:
    """All videos below a folder, with the captions beside them; or, without videos, all lists of the folder."""
    everything = list(_walk(source, options.root, options.hosts))
    candidates = [file for file in everything if is_candidate(file.path, options.non_media)]
    files = _with_members(candidates, options.hosts)
    if files:
        told = captions_beside(files, [file.uri for file in everything if not file.error_type], options)
        described = [replace(file, annotations=file.annotations or told.of.get(file.uri, ())) for file in files]
        form = SHARDS if any(file.archive for file in files) else "a folder"
        return Source(source, described, ", ".join([form, *told.forms]), told.notes)
    lists = [file.uri for file in everything if file.uri.lower().endswith(".parquet")]
    if not lists:
        raise _no_video(source, options.non_media)
    parts = [_list(uri, "parquet", options) for uri in lists]
    joined = [file for part in parts for file in part.files]
    return Source(source, list(_with_distinct_uris(joined)), f"{parts[0].form} in {len(parts)} files")


def _file(source: str, head: bytes | None, options: Options) -> Source:
    """An archive, a list or a single video. head: its first bytes; None: they are read."""
    folder, name = source.rpartition("/")[0], PurePosixPath(source).name
    kind = list_kind(source, head)
    if kind == "tar" or source.lower().endswith((SHARD, *PACKED)):  # a damaged archive is not detected by its content
        files = list(_members(_look(source, name), options.hosts))
        if not files:
            raise ValueError(f"archive {source!r} holds no video: no member has the suffix of a video")
        return Source(folder, files, SHARDS)
    if name.lower().endswith((".toml", ".yaml", ".yml")):
        raise ValueError(
            f"{source!r} is a file of settings, not a list: name the folder of videos that it points to "
            "(video_directory or path in it), whose captions are found beside the videos"
        )
    if not kind:
        if name.lower().endswith((".json", ".jsonl", ".csv", ".tsv")):
            raise ValueError(f"{source!r} is no list of videos: an array or a map of names is expected (ingest.source)")
        return Source(folder, [_look(source, name)], "one file")
    return _list(source, kind, options)


def _list(source: str, kind: str, options: Options) -> Source:
    """The files that a list names."""
    folder = source.rpartition("/")[0]
    form, entries = read_list(source, kind, options.hosts, options.columns)
    prompts, entries = with_prompts(source, kind, entries, options.hosts)
    media = MediaFolder(_media_folder(options.media_root, options.hosts) or folder, form.from_dataset)
    files = _with_members(_listed(source, folder, entries, media), options.hosts)
    if not files:
        raise ValueError(f"list {source!r} names no file: write one path or URI per line (ingest.source)")
    return Source(folder, files, f"{form.name} ({kind.upper()})" + (f" with captions in {prompts}" if prompts else ""))


def _media_folder(media_root: str, hosts: Allowed) -> str:
    """media_root as an absolute folder.

    Raises:
        ValueError: the folder does not exist.
    """
    if not media_root:
        return ""
    if storage.is_local(media_root):
        media_root = str(Path(media_root.removeprefix("file://")).expanduser().resolve())
    if not _reachable(media_root, "isdir", hosts):
        raise ValueError(
            f"media_root {media_root!r} is not a folder: set ingest.media_root to the folder of the videos"
        )
    return media_root.rstrip("/")


def _with_members(files: Iterable[SourceFile], hosts: Allowed) -> list[SourceFile]:
    """The files, with each archive replaced by the videos in it."""
    tars = (_members(file, hosts) if file.uri.lower().endswith(SHARD) else [file] for file in files)
    return list(itertools.chain.from_iterable(tars))


def _members(archive: SourceFile, hosts: Allowed) -> Iterator[SourceFile]:
    """The videos of a WebDataset shard, then an entry with an error if the shard is damaged."""
    if archive.error_type:
        yield archive
        return
    try:
        for member in members(archive.uri, hosts):
            uri, path = f"tar://{member.name}::{archive.uri}", f"{archive.path}/{member.name}"
            if printable(uri) != uri or "::" in member.name:
                yield _bad(uri, path, "bad_name", "the name of the member is not UTF-8, or holds NUL or '::'")
            elif member.problem:
                yield _bad(uri, path, "not_a_file", member.problem)
            else:
                file = SourceFile(uri, path, member.size_bytes, archive.mtime_ns, annotations=member.annotations)
                yield replace(file, archive=archive.uri, offset=member.offset)
    except ValueError as err:
        yield _bad(archive.uri, archive.path, "bad_archive", str(err))


def _walk(source: str, root: str, hosts: Allowed) -> Iterator[SourceFile]:
    """Every file in a folder and its subfolders, in the order of the paths."""
    unreadable: dict[str, OSError] = {}
    tree = local_tree(source, root, unreadable) if storage.is_local(source) else remote_tree(source, root, hosts)
    for uri in sorted([*tree, *unreadable]):
        path = uri.removeprefix(source.rstrip("/") + "/")
        if uri in unreadable:
            yield _bad(uri, path, "unreadable", f"{type(unreadable[uri]).__name__}: {unreadable[uri]}")
        else:
            yield _look(uri, path)


def _bad(uri: str, path: str, error_type: str, error: str) -> SourceFile:
    return SourceFile(
        printable(text_without_secrets(uri)),
        printable(text_without_secrets(path)),
        error_type=error_type,
        error=printable(text_without_secrets(error)),
    )


def _look(uri: str, path: str) -> SourceFile:
    """A file with its size and time of change, or the error that it has."""
    if printable(uri) != uri:
        return _bad(uri, path, "bad_name", "the name is not UTF-8, or holds NUL: rename the file or the folder")
    try:
        if is_web(uri):  # requested only once, for the download: the content of a URL is assumed not to change
            urlsplit(uri)  # raises ValueError for an invalid URL
            public = without_secrets(uri)
            return SourceFile(public, path, request="" if public == uri else uri)
        return _look_local(uri, path) if _is_path(uri) else _look_remote(uri, path)
    except OSError:
        return SourceFile(uri, path)
    except (ValueError, ImportError) as err:  # an invalid URL, an unknown scheme, or a missing package
        return _bad(uri, path, "bad_uri", f"{type(err).__name__}: {err}")
    except Exception as err:  # each file system has its own exceptions
        return _bad(uri, path, "unreadable", f"{type(err).__name__}: {err}")


def _is_path(uri: str) -> bool:
    return uri.startswith("/") or storage.is_local(uri)


def _look_local(uri: str, path: str) -> SourceFile:
    if "::" in uri:
        return _bad(
            uri, path, "bad_name", "'::' in a path means a chain of file systems: rename the file or the folder"
        )
    status = os.stat(uri)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        return _bad(uri, path, "not_a_file", f"{uri} is {kind}, not a file")
    return SourceFile(uri, path, status.st_size, status.st_mtime_ns)


def _look_remote(uri: str, path: str) -> SourceFile:
    fs, name = storage.filesystem(uri)
    size_bytes = fs.size(name) or 0
    try:
        return SourceFile(uri, path, size_bytes, int(fs.modified(name).timestamp() * 1e9))
    except NotImplementedError:  # HTTP gives no time: a new file of the same size is not noticed
        return SourceFile(uri, path, size_bytes)


def _listed(uri: str, folder: str, entries: Iterable[Entry | BadEntry], media: "MediaFolder") -> Iterator[SourceFile]:
    """The files of a list: first those with annotations, then the others. The annotations of a file are merged."""
    annotated: dict[str, SourceFile] = {}  # by URI, as the list gives it
    others: list[SourceFile] = []
    with ThreadPoolExecutor(LOOKS) as pool:
        files = list(pool.map(lambda entry: _entry_file(uri, folder, entry, media), entries))
    for file in files:
        if not file.annotations:
            others.append(file)
            continue
        key = file.request or file.uri
        before = annotated.get(key)
        annotated[key] = replace(file, annotations=before.annotations + file.annotations) if before else file
    yield from _with_distinct_uris([*annotated.values(), *others])


def _with_distinct_uris(files: Sequence[SourceFile]) -> Iterator[SourceFile]:
    """The files, with distinct URIs: URLs that differ only in their secrets, such as `?key=`, get a hash as suffix."""
    requests: dict[str, set[str]] = {}
    for file in files:
        requests.setdefault(file.uri, set()).add(file.request)
    for file in files:
        is_shared = file.request and len(requests[file.uri]) > 1
        yield replace(file, uri=f"{file.uri}#{content_id(file.request)[:8]}") if is_shared else file


def _entry_file(uri: str, folder: str, entry: Entry | BadEntry, media: "MediaFolder") -> SourceFile:
    if isinstance(entry, BadEntry):
        return _bad(f"{uri}#{entry.text}", entry.text, "bad_entry", entry.reason)
    if not storage.is_local(uri) and any(map(is_of_this_machine, (entry.name, entry.url))):
        error = f"{uri} is not on this machine, so it may not name files of this machine: copy the list here first"
        return _bad(f"{uri}#{entry.name}", entry.name, "bad_entry", error)
    if problem := next(filter(None, (foreign(name, folder, media.folder) for name in (entry.name, entry.url))), ""):
        return _bad(entry.name, PurePosixPath(without_secrets(entry.name)).name, "bad_uri", problem)
    full = media.find(entry.name)
    if not full and is_page(entry.url):
        error = (
            f"no {entry.name}.mp4 under {media.folder} (ingest.media_root), and {entry.url} is a web page, not a video "
            "file: download the video yourself"
        )
        return _bad(entry.url, entry.name, "not_downloaded", error)
    full = full or entry.url or absolute_name(entry.name, media.folder)
    is_inside = full.startswith(f"{folder}/")
    public = without_secrets(full)
    path = public.removeprefix(f"{without_secrets(folder)}/") if is_inside else PurePosixPath(public).name
    file = _look(full, path)
    return replace(file, annotations=entry.annotations, sha256=entry.sha256, md5=entry.md5)
