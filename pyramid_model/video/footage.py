"""Footage from outside: what a video file is, found out by decoding all of it once.

Headers lie, so counts, times and damage come from the decoded frames. Decoding goes on after damage, which is counted;
`Footage.integrity` gives the verdict when the last frame has passed.
"""

import contextlib
import os
import stat
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image

from pyramid_model.video.video import VideoError

# Demuxers of files that hold all of their media. Others read playlists, scripts, text or numbered pictures, and would
# open whatever a file names.
MEDIA_FORMATS = (
    "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,kux,asf,ogg,mxf,gxf,nut,rm,wtv,dv,gif,apng,swf,nsv,nuv,"
    "dhav,pva,ty,lxf,bink,smk,roq,flic,ea,film_cpk,4xm,vivo,smjpeg,mjpeg,m4v,h261,h263,h264,hevc,vvc,av1,obu,ivf,vc1,"
    "dirac,cavsvideo,dnxhd,yuv4mpegpipe,mp3,aac,ac3,flac,wav,aiff,caf,amr,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
MAX_PIXELS = 36_000_000  # of one frame; 8K has 33 million. A few bytes of a header may claim ten times as many.
HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}  # PQ and HLG, H.273
TRANSFERS = HDR_TRANSFERS | {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 8: "linear", 13: "iec61966-2-1"}
TRANSFERS |= {14: "bt2020-10", 15: "bt2020-12"}
PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 11: "dci-p3"}
PRIMARIES |= {12: "display-p3"}
MATRICES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc", 10: "bt2020c"}
RANGES = {1: "limited", 2: "full"}


@dataclass(frozen=True)
class VideoProbe:
    """What header and first frame say about a file."""

    container: str
    codec: str
    pix_fmt: str
    width: int  # as shown: after sample aspect and rotation
    height: int
    coded_width: int
    coded_height: int
    rotation: int  # degrees clockwise that turn the coded picture upright: 0, 90, 180 or 270
    is_mirrored: bool  # the coded picture stands on its head before it is turned
    fps: Fraction
    num_frames_header: int  # 0 when the container does not say
    duration_s: float  # of the video stream, else of the container; 0 when unknown
    start_pts: int
    time_base: Fraction
    color_transfer: str  # this and the next three: "" where the file does not say
    color_primaries: str
    color_matrix: str
    color_range: str  # limited or full
    is_hdr: bool
    has_audio: bool
    bit_rate: int

    @property
    def is_image(self) -> bool:
        """Whether it is a lone picture: a video of one frame."""
        return self.container.endswith("_pipe")


@dataclass(frozen=True)
class Integrity:
    """What decoding the whole file showed."""

    num_frames: int
    num_frames_corrupt: int  # damaged, decoded from a damaged reference, or lost
    num_pts_repaired: int  # frames whose time was missing or not after the one before
    fps: Fraction
    is_vfr: bool
    duration_s: float
    problem: VideoError | None  # why the file should not be used as it is


class Scaler:
    """Scales the frames of one file, one thread. What it prepares for a size serves every frame of that size."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[int, int, str], VideoReformatter] = {}

    def scaled(self, image: av.VideoFrame, height: int, width: int, pix_fmt: str, **options: Any) -> av.VideoFrame:
        """The image in that size and format, or the image itself where it is that already.

        Preparing costs more than scaling, and so does dividing a frame among threads.
        """
        prepared = self._prepared.setdefault((height, width, pix_fmt), VideoReformatter())
        return prepared.reformat(image, width, height, pix_fmt, threads=1, **options)


@dataclass(frozen=True)
class Frame:
    """A decoded frame, in the order in which the decoder gives them."""

    index: int
    pts: int  # strictly increasing, in the time base of the probe
    is_corrupt: bool
    image: av.VideoFrame  # as coded: neither turned nor stretched
    rotation: int
    is_mirrored: bool
    scaler: Scaler

    def upright(self, height: int, width: int, interpolation: Interpolation = Interpolation.BICUBIC) -> av.VideoFrame:
        """The frame as it is shown, as yuv420p of limited range; height and width are those of the result and even."""
        coded_size = (width, height) if self.rotation in (90, 270) else (height, width)
        # A range that is not stated is limited in yuv420p: saying so saves copying a frame that has its size already.
        unstated = self.image.format.name == "yuv420p" and self.image.color_range == ColorRange.UNSPECIFIED
        scaled = self.scaler.scaled(
            self.image,
            *coded_size,
            "yuv420p",
            interpolation=interpolation,
            src_color_range=ColorRange.MPEG if unstated else None,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709 if self.image.format.is_rgb else None,
        )
        if not (self.rotation or self.is_mirrored):
            return scaled
        # Plane by plane, since the size is even, and thus without loss.
        return yuv420p_image([turned(plane, self) for plane in yuv420p_planes(scaled)], scaled)

    def small(self, height: int, width: int) -> np.ndarray:
        """The frame scaled down as coded (not turned), BGR uint8 (h w c): what shot detection and scores look at."""
        scaled = self.scaler.scaled(self.image, height, width, "bgr24", interpolation=Interpolation.AREA)
        return scaled.to_ndarray()

    def rgb(self) -> np.ndarray:
        """The frame as it is shown but for sample aspect, uint8 (h w c)."""
        return np.ascontiguousarray(turned(self.image.to_ndarray(format="rgb24"), self))


def _is_jpeg(path: str) -> bool:
    """FFmpeg would take it for one of numbered pictures, by its name, and look for the others."""
    if not path.lower().endswith((".jpg", ".jpeg")):
        return False
    with open(path, "rb") as file:
        return file.read(3) == b"\xff\xd8\xff"


def _picture_size(path: str) -> tuple[int, int]:
    """(width, height) that the header of a picture states; (0, 0) where it states none."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the header alone is read
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF")) as picture:
            return picture.size
    except (OSError, ValueError):
        return 0, 0
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def turned(picture: np.ndarray, coded: "Frame | VideoProbe") -> np.ndarray:
    """A picture (h w …) as it is shown, made from one as it is coded in such a frame or file."""
    return np.rot90(np.flipud(picture) if coded.is_mirrored else picture, -coded.rotation // 90)


def _mirrors(image: av.VideoFrame) -> bool:
    """Whether the display matrix of a frame turns it over, beside rotating it, as selfies are."""
    try:
        matrix = image.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for something else beside the picture, such as EXIF
        return False
    if matrix is None:
        return False
    a, b, _, c, d, *_ = (value / 65536 for value in np.frombuffer(bytes(matrix), np.int32).tolist())
    return a * d < b * c


def yuv420p_planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Luma (h w) and the two of color (h/2 w/2) of a yuv420p frame of even size, uint8."""
    height, width = frame.height, frame.width
    planes = np.split(frame.to_ndarray().reshape(-1), [height * width, height * width * 5 // 4])
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    return [plane.reshape(shape) for plane, shape in zip(planes, shapes, strict=True)]


def yuv420p_image(planes: Sequence[np.ndarray], like: av.VideoFrame) -> av.VideoFrame:
    """The frame of such planes, with the range and the color space of another one."""
    height, width = planes[0].shape
    flat = np.concatenate([plane.reshape(-1) for plane in planes]).astype(np.uint8, copy=False)
    result = av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")
    result.color_range, result.colorspace = like.color_range, like.colorspace
    return result


def probe(path: str) -> VideoProbe:
    """Header and first frame of a file.

    Raises:
        VideoError: it is no video, or no frame of it can be decoded.
    """
    with Footage(path) as footage:
        return footage.probe


def decode(path: str) -> Iterator[Frame]:
    """All frames of a file that can be decoded, damaged ones flagged.

    Raises:
        VideoError: it is no video, or no frame of it can be decoded.
    """
    with Footage(path) as footage:
        yield from footage.frames()


class Footage:
    """A video file from outside, decoded once from start to end with one thread.

    Args:
        path: a local file.
        max_pixels: of one frame, as coded.
        only_to_look: leave out the deblocking of frames from which no other is predicted. That saves a tenth of the
            time and changes a miniature by a fifth of a level of 255 at most; for frames that will be encoded it is
            no good.

    Raises:
        VideoError: on opening: it is no video, its frames are too large, or none of them can be decoded.
    """

    def __init__(self, path: str, max_pixels: int = MAX_PIXELS, only_to_look: bool = False):
        self._max_pixels, self._only_to_look = max_pixels, only_to_look
        # Nothing in a file may make us open another one, or take memory for a picture that is none.
        options = {"protocol_whitelist": "file", "format_whitelist": MEDIA_FORMATS, "max_pixels": str(max_pixels)}
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for whoever writes to it
                raise VideoError("unreadable", f"{path} is a folder, pipe, socket or device, not a file")
            # Absolute, or FFmpeg would take what stands before a colon in a name for a protocol.
            place, form = os.path.abspath(path), "jpeg_pipe" if _is_jpeg(path) else None
            self.container: Any = av.open(place, format=form, options=options)
        except FileNotFoundError as err:
            raise VideoError("missing", f"{path} is missing") from err
        except OSError as err:
            raise VideoError("unreadable", f"{path} cannot be read: {err.strerror}") from err
        except av.error.FFmpegError as err:
            raise VideoError("not_media", f"no media format that can be read: {err.strerror}") from err
        try:
            self.stream = self._video_stream()
            self._images = self._decoded()
            self._lost = self._num_corrupt = self._num_repaired = 0
            self._pts: list[int] = []
            self._last_duration = 0
            self._ends_s: dict[str, float] = {}
            self._scaler = Scaler()
            self._first = next(self._images, None)
            if self._first is None:
                # What the decoder takes for too large has no size any more.
                self._check_size(*(_picture_size(path) if self.container.format.name.endswith("_pipe") else (0, 0)))
                raise VideoError("no_frames", "not one frame could be decoded")
            self.probe = self._probe(self._first)
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
            raise VideoError("no_decoder", f"nothing here decodes the video of this {name} file")
        self._check_size(context.width, context.height)
        # With frame threads libavcodec forgets which frames were damaged; Ray gives the parallelism.
        context.thread_count = 1
        context.options = {
            "max_pixels": str(self._max_pixels),  # frames may be larger than the header says
            "skip_loop_filter": "noref" if self._only_to_look else "default",
        }
        return streams[0]

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            most = f"{self._max_pixels / 1e6:g} million px are the most (clips.max_megapixels)"
            raise VideoError("too_large", f"its frames have {width}x{height} px, {most}")

    def _decoded(self) -> Iterator[tuple[av.VideoFrame, bool]]:
        """(frame, whether packets before it were lost), going on after damage."""
        packets = self.container.demux(self.stream, *self.container.streams.audio)
        lost = False
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:  # the generator ends with its error: the next turn returns
                self._lost, lost = self._lost + 1, True
                continue
            if packet.pts is not None:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._ends_s[packet.stream.type] = max(end_s, self._ends_s.get(packet.stream.type, end_s))
            if packet.stream.index != self.stream.index:
                continue
            try:
                images = packet.decode()
            except av.error.FFmpegError:
                self._lost, lost = self._lost + 1, True
                continue
            for image in images:
                yield image, lost
                lost = False

    def _probe(self, first: tuple[av.VideoFrame, bool]) -> VideoProbe:
        image, stream, context = first[0], self.stream, self.stream.codec_context
        aspect = stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(1)
        if not Fraction(1, 8) <= aspect <= 8:
            aspect = Fraction(1)  # nonsense in the header
        rotation = -round(image.rotation / 90) * 90 % 360
        shown = [round(image.width * aspect), image.height]
        width, height = reversed(shown) if rotation in (90, 270) else shown
        rate = next((r for r in (stream.average_rate, stream.guessed_rate) if r and 0 < r <= 1000), Fraction(25))
        return VideoProbe(
            container=self.container.format.name,
            codec=context.name,
            pix_fmt=image.format.name,
            width=width,
            height=height,
            coded_width=image.width,
            coded_height=image.height,
            rotation=rotation,
            is_mirrored=_mirrors(image),
            fps=rate,
            num_frames_header=stream.frames,
            duration_s=self._stated_duration_s() or (self.container.duration or 0) / av.time_base,
            start_pts=image.pts or 0,
            time_base=stream.time_base,
            color_transfer=TRANSFERS.get(int(image.color_trc), ""),
            color_primaries=PRIMARIES.get(int(image.color_primaries), ""),
            color_matrix=MATRICES.get(int(image.colorspace), ""),
            color_range=RANGES.get(int(image.color_range), ""),
            is_hdr=int(image.color_trc) in HDR_TRANSFERS,
            has_audio=bool(self.container.streams.audio),
            bit_rate=self.container.bit_rate or 0,
        )

    def _stated_duration_s(self) -> float:
        """Duration of the video stream by its own header, edit lists considered; 0 when only the container has one."""
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        # Matroska: "00:00:02.600000000", the time of the end; DURATION-eng and the like by mkvmerge.
        for key, value in self.stream.metadata.items():
            if key.split("-")[0] == "DURATION":
                with contextlib.suppress(ValueError):
                    hours, minutes, seconds = value.split(":")
                    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        return 0.0

    def frames(self) -> Iterator[Frame]:
        """Every frame that can be decoded, once.

        Raises:
            VideoError: the picture changes its size on the way.
        """
        size = (self.probe.coded_width, self.probe.coded_height)
        step = 1 / (self.probe.fps * self.probe.time_base)
        pending, self._first = self._first, None
        damaged = False
        while pending is not None:
            image, lost = pending
            if (image.width, image.height) != size:
                raise VideoError(
                    "size_changes",
                    f"the picture changes from {size[0]}x{size[1]} to {image.width}x{image.height} at frame "
                    f"{len(self._pts)}: cut the file there",
                )
            # Damage spreads through references until a key frame starts afresh.
            damaged = image.is_corrupt or ((damaged or lost) and not image.key_frame)
            self._num_corrupt += damaged
            index, pts = len(self._pts), self._keep_time(image, step)
            yield Frame(index, pts, damaged, image, self.probe.rotation, self.probe.is_mirrored, self._scaler)
            pending = next(self._images, None)

    def _keep_time(self, image: av.VideoFrame, step: Fraction) -> int:
        """The frame's time, moved behind the one before where the file has it missing or out of order.

        step: from frame to frame, in the time base. What is out of order moves by half of it, not to meet the next one.
        """
        half_step, pts = max(1, round(step / 2)), image.pts
        if self._pts and (pts is None or pts <= self._pts[-1]):
            pts = self._pts[-1] + (max(1, round(step)) if pts is None else half_step)
            self._num_repaired += 1
        self._pts.append(pts if pts is not None else 0)
        self._last_duration = image.duration or 2 * half_step
        return self._pts[-1]

    def end_pts(self) -> int:
        """Where the last frame so far stops being shown."""
        return self._pts[-1] + self._last_duration

    def integrity(self) -> Integrity:
        """The verdict; call it when `frames` is exhausted."""
        base = self.probe.time_base
        fps = mean_fps(len(self._pts), self._pts[0], self._pts[-1], base, self.probe.fps)
        return Integrity(
            num_frames=len(self._pts),
            num_frames_corrupt=self._num_corrupt + self._lost,
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
        corrupt = self._num_corrupt + self._lost
        if missing_s > max(tolerance_s, 0.1):
            return VideoError(
                "truncated",
                f"decoding ends after {len(self._pts)} frames, {missing_s:.2f} s before the end that the container "
                f"states ({self.probe.duration_s:.2f} s, {self.probe.num_frames_header or '?'} frames)",
            )
        if corrupt:
            return VideoError("corrupt_frames", f"{corrupt} of {len(self._pts) + self._lost} frames are damaged")
        return None

    def _missing_s(self) -> float:
        """Seconds between the end of what could be decoded and the end that the file states."""
        base = self.probe.time_base
        is_matroska = "matroska" in self.probe.container  # states when the video ends, not how long it is
        start_s = 0.0 if is_matroska else float(min(self._pts[0], self.stream.start_time or self._pts[0]) * base)
        if stated_s := self._stated_duration_s():
            return stated_s - (float(self.end_pts() * base) - start_s)
        if not self.container.duration:
            return 0.0
        # The container's duration may be that of a longer audio track: then the audio must reach it.
        start_s = 0.0 if is_matroska else (self.container.start_time or 0) / av.time_base
        ends_s = max(self._ends_s.values(), default=0.0)
        return self.container.duration / av.time_base - (ends_s - start_s)


def mean_fps(num_frames: int, first_pts: int, last_pts: int, time_base: Fraction, nominal: Fraction) -> Fraction:
    """Frames a second by the timestamps; the nominal rate where the two agree to 1 %."""
    if num_frames < 2:
        return nominal
    measured = (num_frames - 1) / ((last_pts - first_pts) * time_base)
    return nominal if abs(measured / nominal - 1) < 0.01 else measured.limit_denominator(1001)
