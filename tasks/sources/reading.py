"""A source file on this machine, for as long as it is decoded."""

import contextlib
import os
from collections.abc import Iterator

from pyramid_model.video.video import VideoError
from tasks.tables import storage


@contextlib.contextmanager
def reading_source(uri: str, folder: str) -> Iterator[str]:
    """A local path with the content of a source file: the file itself, or a copy that is removed afterwards.

    The copy lies below `folder`, so that whoever owns that can remove it when this process is killed.

    Raises:
        VideoError: it cannot be fetched. What is wrong with a local file shows when that is opened.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = uri if os.path.exists(uri) else stack.enter_context(storage.reading(uri, folder))
        except FileNotFoundError as err:
            raise VideoError("missing", f"{uri} is missing") from err
        except Exception as err:  # each file system has its own
            raise VideoError("unreadable", f"{uri} cannot be fetched: {err}") from err
        yield path
