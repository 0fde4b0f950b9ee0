"""Checks that the file of a clip has not changed since it was written."""

from collections.abc import Mapping
from typing import Any

from tasks.tables import storage


def check_unchanged(clip: Mapping[str, Any]) -> None:
    """Compare the file of a clip with its row. clip: `uri`, `size_bytes` and `crc32`; old rows may have null there.

    Raises:
        VideoError: the file is missing, or has changed since it was cut.
    """
    from pyramid_model.video.video import VideoError  # imports PyAV, which the driver of a step does not need

    remedy = "cut it again: pyramid curate --retry-failed, or put the file back"
    try:
        fs, path = storage.filesystem(clip["uri"])
        size_bytes = fs.size(path)
    except FileNotFoundError as err:
        raise VideoError("missing", f"{clip['uri']} is missing: {remedy}") from err
    if clip["size_bytes"] not in (None, size_bytes):
        raise VideoError(
            "clip_changed", f"{clip['uri']} has {size_bytes} bytes, its row says {clip['size_bytes']}: {remedy}"
        )
    if clip["crc32"] is not None and (checksum := storage.file_crc32(clip["uri"])) != clip["crc32"]:
        raise VideoError(
            "clip_changed", f"{clip['uri']}: crc32 is {checksum:08x}, its row says {clip['crc32']:08x}: {remedy}"
        )
