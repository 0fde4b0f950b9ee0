"""Videos inside the report: small, looping, as data URIs, within a budget of bytes."""

import base64
import io
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks import storage

WHOLE_BYTES = 150_000  # a file up to this size goes in as it is
PREVIEW_WIDTH, PREVIEW_FPS, PREVIEW_S, PREVIEW_CRF = 256, 12, 6.0, 30


@dataclass
class MediaBudget:
    """Hands out data URIs until the page is full; whoever asks first is served first."""

    max_bytes: int
    used_bytes: int = 0
    left_out: int = 0
    missing: int = 0

    def video(self, uri: str) -> str:
        """`data:video/mp4;base64,…` of a clip or picture of ours, or "" when it is missing or does not fit."""
        from pyramid_model.video import VideoError

        if self.used_bytes >= self.max_bytes:
            self.left_out += 1
            return ""
        try:
            data = storage.read_bytes(uri)
            data = data if len(data) <= WHOLE_BYTES and not uri.endswith(".png") else preview(data)
        except (OSError, VideoError):
            self.missing += 1
            return ""
        return self._taken("video/mp4", data)

    def image(self, uri: str) -> str:
        """The same for a picture, taken as it is."""
        suffix = Path(uri).suffix.removeprefix(".").replace("jpg", "jpeg")
        try:
            return self._taken(f"image/{suffix}", storage.read_bytes(uri))
        except OSError:
            self.missing += 1
            return ""

    def _taken(self, mime: str, data: bytes) -> str:
        encoded = base64.b64encode(data).decode()
        if self.used_bytes + len(encoded) > self.max_bytes:
            self.left_out += 1
            return ""
        self.used_bytes += len(encoded)
        return f"data:{mime};base64,{encoded}"


def preview(data: bytes) -> bytes:
    """The first seconds of a video as a small MP4.

    Raises:
        VideoError: it is no video that can be read.
    """
    from pyramid_model.video import write_video

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "preview.mp4")
        frames, fps = small_frames(data)
        write_video(path, frames, fps, crf=PREVIEW_CRF)
        return Path(path).read_bytes()


def small_frames(data: bytes) -> tuple[np.ndarray, float]:
    """The first seconds of a video, scaled down and thinned out: uint8 (t h w c), and their frame rate.

    Raises:
        VideoError: it is no video that can be read.
    """
    import av
    import av.error

    from pyramid_model.video import VideoError

    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 24)
            every = max(1, round(fps / PREVIEW_FPS))
            scale = min(1.0, PREVIEW_WIDTH / max(stream.width, stream.height))
            width, height = (max(2, round(side * scale / 2) * 2) for side in (stream.width, stream.height))
            wanted = itertools.islice(container.decode(stream), 0, int(PREVIEW_S * fps), every)
            frames = [frame.to_ndarray(width=width, height=height, format="rgb24") for frame in wanted]
            return np.stack(frames), fps / every
    except (av.error.FFmpegError, IndexError, ValueError) as err:
        raise VideoError("not_media", f"no readable clip: {err}") from err
