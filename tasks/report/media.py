"""Videos inside the report: small, as data URIs, within a budget of bytes."""

import base64
import io
import itertools
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.tables import storage
from tasks.tables.root_paths import MARK

WHOLE_BYTES = 150_000  # a file up to this size is not encoded again


@dataclass(frozen=True)
class Preview:
    """Size, rate and quality of a small copy of a video."""

    side: int  # px of the longer side
    fps: float
    seconds: float
    crf: int


# Measured on 3 s of seven films at 8 fps, 160 px: H.264 2-9 kB, WebP 2-45 kB at similar quality; 20-30 ms for both.
BESIDE_TEXT = Preview(256, 12, 6.0, 30)
THUMBNAIL = Preview(224, 8, 3.0, 29)
FIRST_FRAME = Preview(160, 8, 0.0, 29)
THUMBNAIL_BYTES = 25_000  # a clip up to this size is its own thumbnail


@dataclass
class MediaBudget:
    """Data URIs for a page of limited size: calls are served in their order until the page is full."""

    max_bytes: int
    used_bytes: int = 0
    left_out: int = 0  # videos that did not fit
    missing: int = 0  # videos that could not be read
    outside: int = 0  # of these, videos that lie outside of the root

    def video(self, uri: str) -> str:
        """`data:video/mp4;base64,…` of a clip or picture of ours; "" when it is missing or does not fit."""
        from pyramid_model.video.video import VideoError

        if self.used_bytes >= self.max_bytes:
            self.left_out += 1
            return ""
        try:
            data = storage.read_bytes(uri)
            data = data if len(data) <= WHOLE_BYTES and not uri.endswith(".png") else preview(data, BESIDE_TEXT)
        except (OSError, VideoError):
            self.missing += 1
            self.outside += uri.startswith(MARK)
            return ""
        return self._taken("video/mp4", data)

    def thumbnails(self, uris: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Name -> (small MP4, JPEG of its first frame) in base64, for as many videos as fit; made in parallel."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            pairs = dict(zip(uris, pool.map(thumbnail, uris.values()), strict=True))
        self.missing += sum(pair is None for pair in pairs.values())
        self.outside += sum(uri.startswith(MARK) for uri in uris.values())
        return {name: (texts[0], texts[1]) for name, pair in pairs.items() if pair and (texts := self._room_for(*pair))}

    def _taken(self, mime: str, data: bytes) -> str:
        encoded = self._room_for(data)
        return f"data:{mime};base64,{encoded[0]}" if encoded else ""

    def _room_for(self, *parts: bytes) -> list[str]:
        """The parts in base64; an empty list when they do not fit together."""
        encoded = [base64.b64encode(part).decode() for part in parts]
        size = sum(map(len, encoded))
        if self.used_bytes + size > self.max_bytes:
            self.left_out += 1
            return []
        self.used_bytes += size
        return encoded


def thumbnail(uri: str) -> tuple[bytes, bytes] | None:
    """A short small MP4 of a video, and its first frame as a JPEG; None when it cannot be read."""
    from pyramid_model.video.video import VideoError

    try:
        data = storage.read_bytes(uri)
        data = data if len(data) <= THUMBNAIL_BYTES else preview(data, THUMBNAIL)
        return data, still(data)
    except (OSError, VideoError):
        return None


def still(data: bytes) -> bytes:
    """The first frame of a video as a small JPEG, which the page shows until the video plays.

    Raises:
        VideoError: the data is not a readable video.
    """
    from pyramid_model.video.video import jpeg

    [frame], _ = small_frames(data, FIRST_FRAME)
    return jpeg(frame, quality=60)


def preview(data: bytes, how: Preview) -> bytes:
    """The first seconds of a video as a small MP4.

    Raises:
        VideoError: the data is not a readable video.
    """
    from pyramid_model.video.video import write_video

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "preview.mp4")
        frames, fps = small_frames(data, how)
        write_video(path, frames, fps, crf=how.crf)
        return Path(path).read_bytes()


def small_frames(data: bytes, how: Preview) -> tuple[np.ndarray, float]:
    """The first seconds of a video, scaled down and at a lower rate: frames, uint8 (t h w c), and their rate.

    One frame at least.

    Raises:
        VideoError: the data is not a readable video.
    """
    import av
    import av.error

    from pyramid_model.video.video import VideoError

    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 24)
            every = max(1, round(fps / how.fps))
            scale = min(1.0, how.side / max(stream.width, stream.height))
            width, height = (max(2, round(side * scale / 2) * 2) for side in (stream.width, stream.height))
            decoded = itertools.islice(container.decode(stream), 0, max(1, int(how.seconds * fps)), every)
            frames = [frame.to_ndarray(width=width, height=height, format="rgb24") for frame in decoded]
            return np.stack(frames), fps / every
    except (av.error.FFmpegError, IndexError, ValueError) as err:
        raise VideoError("not_media", f"no readable clip: {err}") from err
