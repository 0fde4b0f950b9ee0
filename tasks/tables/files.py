"""Checks that the file of a clip has not changed since it was written."""

from tasks.tables import storage


def check_unchanged(uri: str, size_bytes: int | None, crc32: int | None) -> None:
    """Compare the file of a clip with the size and the checksum of its row, which are null in old rows.

    Raises:
        VideoError: the file is missing, or has changed since it was cut.
    """
    from pyramid_model.video.video import VideoError  # imports PyAV, which the driver of a step does not need

    remedy = "cut it again: pyramid curate --retry-failed, or put the file back"
    try:
        fs, path = storage.filesystem(uri)
        actual = fs.size(path)
    except FileNotFoundError as err:
        raise VideoError("missing", f"{uri} is missing: {remedy}") from err
    if size_bytes not in (None, actual):
        raise VideoError("clip_changed", f"{uri} has {actual} bytes, its row says {size_bytes}: {remedy}")
    if crc32 is not None and (checksum := storage.file_crc32(uri)) != crc32:
        raise VideoError("clip_changed", f"{uri}: crc32 is {checksum:08x}, its row says {crc32:08x}: {remedy}")
