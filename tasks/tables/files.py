"""Whether the file of a clip is still the one that was written."""

import zlib
from collections.abc import Mapping
from typing import Any

from tasks.tables import storage


def file_crc32(uri: str) -> int:
    """CRC-32 of a file, read piece by piece."""
    value = 0
    for piece in storage.read_pieces(uri):
        value = zlib.crc32(piece, value)
    return value


def check_unchanged(clip: Mapping[str, Any]) -> None:
    """Compare a clip's file with its row. clip: `uri`, `size_bytes` and `crc32`, which rows of old may lack.

    Raises:
        VideoError: the file is missing, or has changed since it was cut.
    """
    from pyramid_model.video.video import VideoError  # needs PyAV, which the driver of a step does without

    mend = "cut it again: pyramid curate --retry-failed, or put the file back"
    try:
        fs, path = storage.filesystem(clip["uri"])
        size_bytes = fs.size(path)
    except FileNotFoundError as err:
        raise VideoError("missing", f"{clip['uri']} is missing: {mend}") from err
    if clip["size_bytes"] not in (None, size_bytes):
        raise VideoError("clip_changed", f"{clip['uri']} has {size_bytes} bytes, {clip['size_bytes']} were cut: {mend}")
    if clip["crc32"] is not None and (found := file_crc32(clip["uri"])) != clip["crc32"]:
        raise VideoError("clip_changed", f"{clip['uri']}: crc32 is {found:08x}, {clip['crc32']:08x} was cut: {mend}")
