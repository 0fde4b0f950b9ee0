"""Local access to a source file while it is decoded."""

import contextlib
import os
from collections.abc import Iterator

from pyramid_model.video.video import VideoError
from tasks.tables import storage
from tasks.tables.web_hosts import Allowed


@contextlib.contextmanager
def reading_source(uri: str, folder: str, hosts: Allowed = ()) -> Iterator[str]:
    """A local path with the content of a source file: the file itself, or a copy that is removed afterwards.

    The copy is in `folder`, so that the owner of the folder can remove it if this process is killed.
    hosts: as `storage.filesystem`.

    Raises:
        VideoError: the file cannot be fetched, or is a folder, pipe or device. A damaged local file raises an error
            only when it is opened.
    """
    if os.path.exists(uri) and not os.path.isfile(uri):  # a pipe would be waited for without end
        raise VideoError("unreadable", f"{uri} is a folder, pipe or device, where a file is expected")
    with contextlib.ExitStack() as stack:
        try:
            path = uri if os.path.exists(uri) else stack.enter_context(storage.reading(uri, folder, hosts))
        except FileNotFoundError as err:
            raise VideoError("missing", f"{uri} is missing") from err
        except Exception as err:  # each file system has its own exceptions
            raise VideoError("unreadable", f"{uri} cannot be fetched: {err}") from err
        yield path
