"""Files in a folder and its subfolders, local or remote, without the files that the pipeline wrote."""

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

from tasks.tables import storage
from tasks.tables.web_hosts import Allowed

SHARD = ".tar"  # suffix of archives; in a folder, the videos in an archive count
# Entries of a root (docs/tables.md): the pipeline wrote these files, so they are not sources.
OWN = ("tables", "media", "models", "checkpoints", "cache", "runs", "mlflow", "prefect", "report.html")
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
NON_MEDIA = (
    *("yaml", "yml", "json", "jsonl", "csv", "tsv", "parquet", "xml", "toml", "ini", "cfg", "md", "txt", "log", "pdf"),
    *("html", "htm", "srt", "vtt", "ass", "ssa", "sub", "nfo", "caption", "sha256", "md5", "part", "py", "sh", "zip"),
    *("gz", "zst", "tar", "svg", "thm"),
    *IMAGES,
)


def is_candidate(path: str, non_media: tuple[str, ...]) -> bool:
    """Whether a file may be a video or an archive; path: relative to the folder of the source."""
    parts = PurePosixPath(path).parts
    suffix = PurePosixPath(path).suffix.lower()
    return not any(part.startswith(".") for part in parts) and (suffix == SHARD or suffix[1:] not in non_media)


def local_tree(folder: str, root: str, unreadable: dict[str, OSError]) -> Iterator[str]:
    """Paths of the files in a folder and its subfolders, without the files of the root.

    Links to folders are followed, and each folder is visited once. Links are visited last, so that files get
    the path of their own folder. Folders that cannot be opened are added to `unreadable`, with the error.
    """

    def on_error(err: OSError) -> None:
        if not is_own(os.path.realpath(err.filename), root):
            unreadable[err.filename] = err

    visited: set[str] = set()  # real paths
    tops = [folder]
    for top in tops:
        for parent, folders, names in os.walk(top, onerror=on_error):
            real = os.path.realpath(parent)
            if real in visited or is_own(real, root):
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            for name in names:
                path, target = os.path.join(parent, name), os.path.join(real, name)
                if not is_own(os.path.realpath(path) if os.path.islink(path) else target, root):
                    yield path


def is_own(uri: str, root: str) -> bool:
    """Whether the pipeline wrote this file or folder of the root."""
    return any(uri == folder or uri.startswith(f"{folder}/") for folder in (f"{root}/{name}" for name in OWN))


def remote_tree(folder: str, root: str, hosts: Allowed = ()) -> list[str]:
    """URIs of the files in a folder of an fsspec file system, without those of the root. hosts: of `filesystem`."""
    fs, path = storage.filesystem(folder, hosts)
    return [uri for name in fs.find(path) if not is_own(uri := fs.unstrip_protocol(name), root)]
