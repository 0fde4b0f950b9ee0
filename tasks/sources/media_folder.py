"""The files that the names in a list mean."""

import functools
import os
import posixpath
from pathlib import PurePosixPath

from tasks.sources.entry_names import printable
from tasks.sources.fetch import is_web
from tasks.sources.trees import NON_MEDIA
from tasks.tables import storage


class MediaFolder:
    """Finds the files that the relative names of a list mean.

    Args:
        folder: media_root, or the folder of the list.
        anywhere: also look in subfolders and for names without suffix, as for lists of published data sets.
    """

    def __init__(self, folder: str, anywhere: bool):
        self.folder, self.anywhere = folder, anywhere and not is_web(folder)

    def find(self, name: str) -> str:
        """Path or URI of a named file; "" if `anywhere` is set and no single file has that name."""
        direct = absolute_name(name, self.folder)
        if not self.anywhere or printable(name) != name or "://" in name or name.startswith(("/", "~")):
            return direct
        if storage.is_local(direct) and os.path.isfile(direct):
            return direct
        keys = (direct, PurePosixPath(name).name, f"{name}/")
        return next((uri for key in keys if (uri := self._below.get(key, ""))), "")

    @functools.cached_property
    def _below(self) -> dict[str, str]:
        """URI of every file in the folder and its subfolders, by URI, by name, and by name without suffix plus a slash.

        A name that several files have maps to "", since it is ambiguous.
        """
        fs, top = storage.filesystem(self.folder)
        uris: dict[str, str] = {}
        for path in fs.find(top) if fs.isdir(top) else []:
            name, uri = PurePosixPath(path), path if storage.is_local(self.folder) else fs.unstrip_protocol(path)
            if name.suffix[1:].lower() not in NON_MEDIA and printable(uri) == uri:
                for key in (uri, name.name, f"{name.stem}/"):
                    uris[key] = "" if key in uris else uri
        return uris


def absolute_name(entry: str, folder: str) -> str:
    """Absolute path or URI of an entry, without `~` and `..`, so that equal files have equal names."""
    if printable(entry) != entry:
        return entry
    entry = os.path.expanduser(entry.removeprefix("file://"))
    uri = entry if "://" in entry or entry.startswith("/") else f"{folder}/{entry}"
    has_parents = ".." in uri.split("/")
    if "://" in uri:
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://{posixpath.normpath(rest)}" if has_parents else uri
    parent, name = os.path.split(uri)
    return os.path.join(os.path.realpath(parent) if has_parents else os.path.normpath(parent), name)
