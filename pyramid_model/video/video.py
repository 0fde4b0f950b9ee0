"""Reading and writing of our own clips, pictures and videos.

Our clips are undamaged, so they are read by frame number: with decord if it is available, else with PyAV. Files from
outside are decoded by `footage`.
"""

import contextlib
import io
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image

DECORD_REFUSES = (16, 24, 48, 72)  # widths in px: decord pads such rows and then fails to copy them
BT709 = 1  # code in H.273, the same for primaries, transfer and matrix


class VideoError(Exception):
    """A video file cannot be used. `kind` is the error type for tables, the message is for people.

    Kinds: missing, not_media, no_video_stream, no_decoder, too_large, no_frames, truncated, corrupt_frames,
    size_changes, hdr, unreadable, source_changed, clip_changed, no_clips, timeout, too_much_memory, decoder_crashed.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self):
        return VideoError, (self.kind, str(self))


@dataclass(frozen=True)
class _ClipHeader:
    """Properties in the container of one of our clips; fps is the mean frame rate."""

    num_frames: int
    height: int
    width: int
    fps: float


def clip_length(uri: str) -> int:
    """Number of frames of one of our clips.

    Raises:
        VideoError: the file is missing or cannot be read.
    """
    return _header(_media(uri), uri).num_frames


def read_clip(
    uri: str,
    *,
    height: int,
    width: int,
    fps: float | None = None,
    num_frames: int | None = None,
    start_s: float = 0.0,
) -> np.ndarray:
    """Read frames of one of our clips, scaled to cover height x width and centre-cropped.

    Args:
        uri: path or fsspec URI.
        height, width: of the result, px.
        fps: the frames nearest to the times start_s, start_s + 1/fps, … are read; None: every frame.
        num_frames: number of frames; None: all frames from `start_s` on.
        start_s: seconds after the first frame.

    Returns:
        uint8 RGB, (t h w c).

    Raises:
        ValueError: the clip has fewer frames than `num_frames`.
        VideoError: the file is missing or cannot be read.
    """
    media = _media(uri)
    header = _header(media, uri)
    scale = max(height / header.height, width / header.width)
    scaled = max(height, round(header.height * scale)), max(width, round(header.width * scale))
    use_decord = sys.platform == "linux" and scaled[1] not in DECORD_REFUSES
    reader = _decord_reader(media, uri, scaled) if use_decord else _AvReader(media, uri, scaled)
    indices = _nearest(reader.times(), header, fps, num_frames, start_s, uri)
    frames = reader.frames(indices)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def _nearest(
    times: np.ndarray, header: _ClipHeader, fps: float | None, num_frames: int | None, start_s: float, uri: str
) -> np.ndarray:
    """Indices of the frames that `read_clip` reads, (num_frames,). times: of all frames, seconds, (n,)."""
    times = times - times[0]
    step = 1 / (fps or header.fps)
    first = int(np.searchsorted(times, start_s - step / 2))
    if fps is None:
        available = len(times) - first
    else:
        last_s = times[-1] + 0.5 / header.fps  # until then the last frame is displayed and is the nearest
        available = math.floor((last_s - start_s) / step + 1e-6) + 1
    count = available if num_frames is None else num_frames
    # Timestamps are rounded, so one frame too many is accepted: the last frame is repeated.
    if count < 1 or count > available + (fps is not None):
        raise ValueError(
            f"{uri} has {available} frames from {start_s:g} s on at {fps or header.fps:g} fps, but {count} are needed: "
            "lower num_frames or fps, or select longer clips (min_frames)"
        )
    if fps is None:
        return np.arange(first, first + count)
    targets = start_s + np.arange(count) * step
    after = np.clip(np.searchsorted(times, targets), 1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(count, dtype=int)
    tie = step * 1e-3  # stored times are rounded: for a target half-way between two frames, always take the earlier one
    return np.where(targets - times[after - 1] <= times[after] - targets + tie, after - 1, after)


def _media(uri: str) -> Any:
    """Argument for decoders: the path, or the bytes of a remote object."""
    if "://" not in uri:
        if os.path.islink(uri):  # a root from elsewhere may hold links to any file; the pipeline writes none
            raise VideoError("link", f"{uri} is a link, and no clip of ours: put the file itself there")
        return uri
    import fsspec

    fs, path = fsspec.url_to_fs(uri)
    return io.BytesIO(fs.cat_file(path))


def open_clip(uri: str) -> contextlib.AbstractContextManager[tuple[Any, Any]]:
    """Context manager of (PyAV container, video stream) of one of our clips.

    Raises:
        VideoError: on entering or within the block: the file is missing or cannot be read.
    """
    return _opened(_media(uri), uri)


@contextlib.contextmanager
def _opened(media: Any, uri: str) -> Iterator[tuple[Any, Any]]:
    """See `open_clip`; media: as `_media` returns it."""
    if isinstance(media, io.BytesIO):
        media.seek(0)
    try:
        with av.open(media) as container:
            yield container, container.streams.video[0]
    except FileNotFoundError as err:
        raise VideoError("missing", f"{uri} is missing: run the clips step again or restore the media folder") from err
    except (av.error.FFmpegError, IndexError) as err:
        raise VideoError("not_media", f"{uri} cannot be read as a clip: {err}") from err


def _header(media: Any, uri: str) -> _ClipHeader:
    with _opened(media, uri) as (container, stream):
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        return _ClipHeader(count, stream.height, stream.width, float(stream.average_rate or 1))


class _AvReader:
    """Reads a clip with PyAV, where decord is not available; also the reference in decord's tests."""

    def __init__(self, media: Any, uri: str, size: tuple[int, int]):
        self.media, self.uri, self.size = media, uri, size

    def times(self) -> np.ndarray:
        """Presentation time of every frame, seconds, (n,)."""
        with _opened(self.media, self.uri) as (container, stream):
            return np.array(sorted(float(p.pts * stream.time_base) for p in container.demux(stream) if p.size))

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """The frames at these indices, uint8 RGB (t h w c)."""
        height, width = self.size
        needed, last = set(indices.tolist()), max(indices)
        images: dict[int, np.ndarray] = {}
        with _opened(self.media, self.uri) as (container, stream):
            stream.codec_context.thread_count = 1
            for index, frame in enumerate(container.decode(stream)):
                if index in needed:
                    images[index] = frame.to_ndarray(
                        width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR
                    )
                if index >= last:
                    break
        return np.stack([images[index] for index in indices.tolist()])


def _decord_reader(media: Any, uri: str, size: tuple[int, int]) -> Any:
    """Open a clip with decord. Raises VideoError if it cannot be read."""
    import decord

    height, width = size
    if isinstance(media, io.BytesIO):
        media.seek(0)
    try:
        return _DecordReader(decord.VideoReader(media, ctx=decord.cpu(0), width=width, height=height, num_threads=1))
    except decord.DECORDError as err:
        raise VideoError("not_media", f"{uri} cannot be read as a clip: {err}") from err


class _DecordReader:
    """Reads a clip with decord; same interface and results as `_AvReader`."""

    def __init__(self, reader: Any):
        self.reader = reader

    def times(self) -> np.ndarray:
        """Presentation time of every frame, seconds, (n,)."""
        return self.reader.get_frame_timestamp(np.arange(len(self.reader)))[:, 0]

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """The frames at these indices, uint8 RGB (t h w c)."""
        return self.reader.get_batch(indices).asnumpy()


def write_video(uri: str, frames: Iterable[np.ndarray], fps: float | Fraction, crf: int = 18) -> None:
    """Write frames as H.264 in MP4, atomically.

    Args:
        uri: path or fsspec URI that ends in .mp4.
        frames: (t h w c) uint8 RGB, or any iterable of (h w c); height and width must be even.
        fps: frames per second.
        crf: x264 quality, 0 (lossless) to 51; 18 looks like the original.

    Raises:
        ValueError: no frames, an odd size, or a size that changes.
    """
    with open_video(uri, fps, crf) as video:
        for frame in frames:
            video.write(frame[None])


@contextlib.contextmanager
def open_video(uri: str, fps: float | Fraction, crf: int = 18) -> Iterator["VideoWriter"]:
    """Context manager that writes H.264 in MP4 a few frames at a time; memory does not grow with the length.

    The file appears at `uri` when the block ends without an error; otherwise it is deleted.

    Args:
        uri: path or fsspec URI that ends in .mp4.
        fps: frames per second.
        crf: x264 quality, 0 (lossless) to 51; 18 looks like the original.

    Raises:
        ValueError: no frames were written.
    """
    with _appearing(uri) as path:
        video = VideoWriter(path, Fraction(fps).limit_denominator(1001), crf)
        try:
            yield video
            if video.clip is None:
                raise ValueError(f"no frames to write to {uri}: a video needs at least one")
            video.clip.close()
        except BaseException:
            if video.clip:
                video.clip.abandon()
            raise


class VideoWriter:
    """Encoder that `open_video` returns."""

    def __init__(self, path: str, rate: Fraction, crf: int):
        self.path, self.rate, self.crf = path, rate, crf
        self.num_frames = 0
        self.clip: ClipWriter | None = None  # its size is that of the first frames

    def write(self, frames: np.ndarray) -> None:
        """Append frames, (t h w c) uint8 RGB.

        Raises:
            ValueError: the height or the width is odd, or differs from that of earlier frames.
        """
        height, width = frames.shape[1:3]
        self.clip = self.clip or ClipWriter(self.path, height, width, self.rate, 1 / self.rate, self.crf, color=BT709)
        first = self.clip.stream.height, self.clip.stream.width
        if (height, width) != first:
            raise ValueError(
                f"frame {self.num_frames} has {height}x{width} px, earlier frames have {first[0]}x{first[1]} px: "
                "scale all frames of a video to one size"
            )
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            self.clip.write(_to_yuv(frame), self.num_frames)
            self.num_frames += 1


def write_image(uri: str, frame: np.ndarray) -> None:
    """Write one frame as PNG, atomically.

    Args:
        uri: path or fsspec URI that ends in .png.
        frame: (h w c) uint8 RGB.
    """
    with _appearing(uri) as path:
        Image.fromarray(frame).save(path, format="PNG")


def jpeg(frame: np.ndarray, quality: int = 90) -> bytes:
    """Encode a frame, RGB uint8 (h w 3), as JPEG; quality 1..95."""
    target = io.BytesIO()
    Image.fromarray(frame).save(target, "JPEG", quality=quality)
    return target.getvalue()


def _to_yuv(rgb: av.VideoFrame) -> av.VideoFrame:
    return rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)


class ClipWriter:
    """Encodes yuv420p frames with x264 in one thread into an MP4 file.

    Raises:
        ValueError: the height or the width is odd.
    """

    def __init__(
        self,
        path: str,
        height: int,
        width: int,
        rate: Fraction,
        time_base: Fraction,
        crf: int,
        preset: str = "veryfast",
        color: int = 2,
    ):
        if height % 2 or width % 2:
            raise ValueError(f"H.264 needs even sizes, got {height}x{width} px: crop or scale to even numbers")
        self.container = av.open(path, "w", format="mp4", options={"movflags": "+faststart"})
        # No B frames: frames are then stored in display order, and readers need no edit list.
        options = {"crf": str(crf), "preset": preset, "bf": "0", "threads": "1"}
        self.stream: Any = self.container.add_stream("libx264", rate=rate, options=options)
        self.stream.height, self.stream.width, self.stream.pix_fmt = height, width, "yuv420p"
        context = self.stream.codec_context
        context.time_base = self.time_base = time_base
        context.color_range, context.colorspace = ColorRange.MPEG, color
        if color == BT709:
            context.color_primaries = context.color_trc = color

    def write(self, frame: av.VideoFrame, pts: int) -> None:
        """Append a yuv420p frame of the writer's size; pts: its time in the writer's time base."""
        frame.pts, frame.time_base = pts, self.time_base
        frame.pict_type = 0  # type: ignore[assignment]  # the encoder chooses the key frames
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Flush and finish the file."""
        self.container.mux(self.stream.encode())
        self.container.close()

    def abandon(self) -> None:
        """Close the file without finishing it."""
        with contextlib.suppress(OSError, av.error.FFmpegError):
            self.container.close()


@contextlib.contextmanager
def _appearing(uri: str) -> Iterator[str]:
    """Context manager of a local path to write to. The file is moved to `uri` when the block ends without an error."""
    remote = "://" in uri
    folder = tempfile.gettempdir() if remote else os.path.dirname(os.path.abspath(uri))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=os.path.splitext(uri)[1], prefix=".writing-", dir=folder)
    os.close(handle)
    try:
        yield temporary
        if remote:
            import fsspec

            fs, path = fsspec.core.url_to_fs(uri)
            fs.put_file(temporary, path)
        else:
            os.chmod(temporary, 0o644)
            os.replace(temporary, uri)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
