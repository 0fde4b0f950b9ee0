"""Decoding of video files from outside (not written by this project), once from start to end.

Headers are not reliable, so the number of frames, their times and damage are taken from the decoded frames. Decoding
continues after damage, which is counted. `Footage.integrity` summarises it after the last frame.
"""

import os
import stat
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition
from PIL import Image

from pyramid_model.video.frame import Frame, Scaler
from pyramid_model.video.probe import VideoProbe, read_probe, stream_duration_s
from pyramid_model.video.video import VideoError

# Demuxers of self-contained files. The others read playlists, scripts, text or numbered pictures, and would open any
# path that such a file contains.
MEDIA_FORMATS = (
    "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,kux,asf,ogg,mxf,gxf,nut,rm,wtv,dv,gif,apng,swf,nsv,nuv,"
    "dhav,pva,ty,lxf,bink,smk,roq,flic,ea,film_cpk,4xm,vivo,smjpeg,mjpeg,m4v,h261,h263,h264,hevc,vvc,av1,obu,ivf,vc1,"
    "dirac,cavsvideo,dnxhd,yuv4mpegpipe,mp3,aac,ac3,flac,wav,aiff,caf,amr,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
MAX_PIXELS = 36_000_000  # of one frame; 8K has 33 million. The header of a tiny file can state many more.


@dataclass(frozen=True)
class Integrity:
    """Result of decoding the whole file."""

    num_frames: int
    num_frames_corrupt: int  # damaged, decoded from a damaged reference, or lost
    num_pts_repaired: int  # frames whose time was missing or not later than that of the previous frame
    fps: Fraction
    is_vfr: bool  # variable frame rate
    duration_s: float
    problem: VideoError | None  # the reason why the file should not be used, if there is one


def _is_jpeg(path: str) -> bool:
    """Whether a file is a JPEG picture, for which FFmpeg would choose the demuxer of numbered pictures by its name."""
    if not path.lower().endswith((".jpg", ".jpeg")):
        return False
    with open(path, "rb") as file:
        return file.read(3) == b"\xff\xd8\xff"


def _picture_size(path: str) -> tuple[int, int]:
    """(width, height) in the header of a picture file; (0, 0) if there is none."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # only the header is read
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF")) as picture:
            return picture.size
    except (OSError, ValueError):
        return 0, 0
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def probe(path: str) -> VideoProbe:
    """Properties of a file according to its header and first frame.

    Raises:
        VideoError: the file is not a video, or no frame can be decoded.
    """
    with Footage(path) as footage:
        return footage.probe


def decode(path: str) -> Iterator[Frame]:
    """Yield all frames of a file that can be decoded; damaged frames are flagged.

    Raises:
        VideoError: the file is not a video, no frame can be decoded, or the frame size changes.
    """
    with Footage(path) as footage:
        yield from footage.frames()


class Footage:
    """A video file from outside, decoded once from start to end in one thread.

    Args:
        path: a local file.
        max_pixels: largest number of pixels of a coded frame.
        only_to_look: skip the deblocking filter of frames that are not references. Saves a tenth of the time and
            changes a downscaled frame by at most 0.2 levels of 255. Not for frames that will be encoded.

    Raises:
        VideoError: on opening: the file is not a video, its frames are too large, or no frame can be decoded.
    """

    def __init__(self, path: str, max_pixels: int = MAX_PIXELS, only_to_look: bool = False):
        self._max_pixels, self._only_to_look = max_pixels, only_to_look
        # A file must not make us open other files, nor allocate memory for more pixels than max_pixels.
        options = {"protocol_whitelist": "file", "format_whitelist": MEDIA_FORMATS, "max_pixels": str(max_pixels)}
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block until something writes to it
                raise VideoError("unreadable", f"{path} is a folder, pipe or device, where a file is expected")
            # An absolute path, because FFmpeg reads the part before a colon in a relative path as a protocol.
            absolute_path, demuxer = os.path.abspath(path), "jpeg_pipe" if _is_jpeg(path) else None
            self.container: Any = av.open(absolute_path, format=demuxer, options=options)
        except FileNotFoundError as err:
            raise VideoError("missing", f"{path} is missing") from err
        except OSError as err:
            raise VideoError("unreadable", f"{path} cannot be read: {err.strerror}") from err
        except av.error.FFmpegError as err:
            raise VideoError("not_media", f"the file has no media format that can be read: {err.strerror}") from err
        try:
            self.stream = self._video_stream()
            self._images = self._decoded()
            self._num_lost = self._num_corrupt = self._num_repaired = 0
            self._pts: list[int] = []
            self._last_duration = 0
            self._ends_s: dict[str, float] = {}
            self._scaler = Scaler()
            self._first = next(self._images, None)
            if self._first is None:
                # For a picture that is too large, the decoder reports no size: read it from the header.
                self._check_size(*(_picture_size(path) if self.container.format.name.endswith("_pipe") else (0, 0)))
                raise VideoError("no_frames", "no frame could be decoded")
            self.probe = read_probe(self.container, self.stream, self._first[0])
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> "Footage":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _video_stream(self) -> Any:
        name = self.container.format.name
        covers = [s for s in self.container.streams.video if s.disposition & Disposition.attached_pic]
        streams = [s for s in self.container.streams.video if s not in covers]
        if not streams:
            kinds = {"a cover picture" if s in covers else s.type for s in self.container.streams}
            kinds = ", ".join(sorted(kinds)) or "none"
            raise VideoError("no_video_stream", f"the {name} file has no video stream (streams: {kinds})")
        context = streams[0].codec_context
        if context is None:
            raise VideoError("no_decoder", f"no decoder is installed for the video stream of this {name} file")
        self._check_size(context.width, context.height)
        # With frame threads libavcodec does not report which frames are damaged. Files are decoded in parallel instead.
        context.thread_count = 1
        context.options = {
            "max_pixels": str(self._max_pixels),  # frames may be larger than the header states
            "skip_loop_filter": "noref" if self._only_to_look else "default",
        }
        return streams[0]

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            limit = f"the limit is {self._max_pixels / 1e6:g} million px (clips.max_megapixels)"
            raise VideoError("too_large", f"its frames have {width}x{height} px, {limit}")

    def _decoded(self) -> Iterator[tuple[av.VideoFrame, bool]]:
        """Yield (frame, whether packets before it could not be read); continues after damage."""
        packets = self.container.demux(self.stream, *self.container.streams.audio)
        follows_gap = False
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:  # the generator has ended: the next iteration returns
                self._num_lost, follows_gap = self._num_lost + 1, True
                continue
            if packet.pts is not None:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._ends_s[packet.stream.type] = max(end_s, self._ends_s.get(packet.stream.type, end_s))
            if packet.stream.index != self.stream.index:
                continue
            try:
                images = packet.decode()
            except av.error.FFmpegError:
                self._num_lost, follows_gap = self._num_lost + 1, True
                continue
            for image in images:
                yield image, follows_gap
                follows_gap = False

    def frames(self) -> Iterator[Frame]:
        """Yield every frame that can be decoded; can be called once.

        Raises:
            VideoError: the frame size changes within the file.
        """
        size = (self.probe.coded_width, self.probe.coded_height)
        step = 1 / (self.probe.fps * self.probe.time_base)
        pending, self._first = self._first, None
        damaged = False
        while pending is not None:
            image, follows_gap = pending
            if (image.width, image.height) != size:
                raise VideoError(
                    "size_changes",
                    f"the picture changes from {size[0]}x{size[1]} to {image.width}x{image.height} at frame "
                    f"{len(self._pts)}: cut the file there",
                )
            # Damage propagates through references until the next key frame.
            damaged = image.is_corrupt or ((damaged or follows_gap) and not image.key_frame)
            self._num_corrupt += damaged
            index, pts = len(self._pts), self._add_time(image, step)
            yield Frame(index, pts, damaged, image, self.probe.rotation, self.probe.is_mirrored, self._scaler)
            pending = next(self._images, None)

    def _add_time(self, image: av.VideoFrame, step: Fraction) -> int:
        """Record the frame's time and return it. A missing or unordered time is replaced by one after the last frame.

        step: frame interval in units of the time base. An unordered time is set half a step after the last frame, so
            that it does not coincide with the next frame.
        """
        half_step, pts = max(1, round(step / 2)), image.pts
        if self._pts and (pts is None or pts <= self._pts[-1]):
            pts = self._pts[-1] + (max(1, round(step)) if pts is None else half_step)
            self._num_repaired += 1
        self._pts.append(pts if pts is not None else 0)
        self._last_duration = image.duration or 2 * half_step
        return self._pts[-1]

    def end_pts(self) -> int:
        """End of the display time of the last frame so far, in units of the time base."""
        return self._pts[-1] + self._last_duration

    def integrity(self) -> Integrity:
        """Summary of the decoding; call it after `frames` is exhausted."""
        base = self.probe.time_base
        fps = mean_fps(len(self._pts), self._pts[0], self._pts[-1], base, self.probe.fps)
        return Integrity(
            num_frames=len(self._pts),
            num_frames_corrupt=self._num_corrupt + self._num_lost,
            num_pts_repaired=self._num_repaired,
            fps=fps,
            is_vfr=self._is_vfr(),
            duration_s=float((self.end_pts() - self._pts[0]) * base),
            problem=self._problem(float(3 / fps)),
        )

    def _is_vfr(self) -> bool:
        """Whether frame intervals differ by more than the rounding of the time base."""
        if self._num_repaired or len(self._pts) < 3:
            return False
        intervals = np.diff(self._pts)
        typical = statistics.median_low(intervals.tolist())
        return bool(np.abs(intervals - typical).max() > max(1, 0.25 * typical))

    def _problem(self, tolerance_s: float) -> VideoError | None:
        missing_s = self._missing_s()
        corrupt = self._num_corrupt + self._num_lost
        if missing_s > max(tolerance_s, 0.1):
            return VideoError(
                "truncated",
                f"decoding ends after {len(self._pts)} frames, {missing_s:.2f} s before the end that the container "
                f"states ({self.probe.duration_s:.2f} s, {self.probe.num_frames_header or '?'} frames)",
            )
        if corrupt:
            return VideoError("corrupt_frames", f"{corrupt} of {len(self._pts) + self._num_lost} frames are damaged")
        return None

    def _missing_s(self) -> float:
        """Seconds between the end of the last decoded frame and the end that the file states."""
        base = self.probe.time_base
        is_matroska = "matroska" in self.probe.container  # states the time of the end, not the duration
        start_s = 0.0 if is_matroska else float(min(self._pts[0], self.stream.start_time or self._pts[0]) * base)
        if stated_s := stream_duration_s(self.stream):
            return stated_s - (float(self.end_pts() * base) - start_s)
        if not self.container.duration:
            return 0.0
        # The container's duration may be that of a longer audio track: compare it with the latest end of any stream.
        start_s = 0.0 if is_matroska else (self.container.start_time or 0) / av.time_base
        ends_s = max(self._ends_s.values(), default=0.0)
        return self.container.duration / av.time_base - (ends_s - start_s)


def mean_fps(num_frames: int, first_pts: int, last_pts: int, time_base: Fraction, nominal: Fraction) -> Fraction:
    """Mean frames per second by the timestamps; the nominal rate if the two agree within 1 %."""
    if num_frames < 2:
        return nominal
    measured = (num_frames - 1) / ((last_pts - first_pts) * time_base)
    return nominal if abs(measured / nominal - 1) < 0.01 else measured.limit_denominator(1001)
