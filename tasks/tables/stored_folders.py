"""Folders at any URI: read through a local path, and written as a whole."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from tasks.tables import storage


@contextlib.contextmanager
def local_folder(uri: str) -> Iterator[str]:
    """A local path with the content of a folder: the folder itself, or a temporary copy of a remote one."""
    fs, path = storage.filesystem(uri)
    if storage.is_local(uri):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        fs.get(path.rstrip("/") + "/", folder, recursive=True)
        yield folder


@contextlib.contextmanager
def writing_folder(uri: str, last: Sequence[str] = ()) -> Iterator[str]:
    """A local folder to write to; on exit without an error the complete folder is moved to `uri`.

    On an object store, which cannot rename folders, the files named in `last` are put after all others: if they
    exist, the folder is complete. An existing folder is kept, since equal names mean equal content.
    """
    fs, target = storage.filesystem(uri)
    parent = os.path.dirname(target) if storage.is_local(uri) else None
    if parent:
        os.makedirs(parent, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".writing-", dir=parent)
    try:
        yield folder
        if parent:
            os.chmod(folder, 0o755)
            with contextlib.suppress(FileExistsError):
                _rename_new(folder, target)
        else:
            for name in sorted(os.listdir(folder), key=lambda name: name in last):
                fs.put(os.path.join(folder, name), f"{target}/{name}", recursive=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rename_new(folder: str, target: str) -> None:
    try:
        os.rename(folder, target)
    except OSError as err:  # ENOTEMPTY: another process has already written the folder
        if not os.path.isdir(target):
            raise
        raise FileExistsError(target) from err
