"""Properties of a video file from outside, as its header and its first decoded frame state them."""

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}  # PQ and HLG, H.273
TRANSFERS = HDR_TRANSFERS | {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 8: "linear", 13: "iec61966-2-1"}
TRANSFERS |= {14: "bt2020-10", 15: "bt2020-12"}
PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 11: "dci-p3"}
PRIMARIES |= {12: "display-p3"}
MATRICES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc", 10: "bt2020c"}
RANGES = {1: "limited", 2: "full"}


@dataclass(frozen=True)
class VideoProbe:
    """Properties of a file according to its header and first frame."""

    container: str
    codec: str
    pix_fmt: str
    width: int  # as displayed: after sample aspect ratio and rotation
    height: int
    coded_width: int
    coded_height: int
    rotation: int  # clockwise rotation in degrees from the coded to the displayed picture: 0, 90, 180 or 270
    is_mirrored: bool  # the coded picture is flipped vertically before the rotation
    fps: Fraction
    num_frames_header: int  # 0 if the container does not state it
    duration_s: float  # of the video stream, else of the container; 0 if unknown
    start_pts: int
    time_base: Fraction
    color_transfer: str  # this and the next three: "" if the file does not state it
    color_primaries: str
    color_matrix: str
    color_range: str  # limited or full
    is_hdr: bool
    has_audio: bool
    bit_rate: int

    @property
    def is_image(self) -> bool:
        """Whether the file is a single picture, which is decoded as a video of one frame."""
        return self.container.endswith("_pipe")


def read_probe(container: Any, stream: Any, image: av.VideoFrame) -> VideoProbe:
    """Properties of an open file.

    Args:
        container: of PyAV.
        stream: the video stream.
        image: first decoded frame of the stream.
    """
    context = stream.codec_context
    aspect = stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, 8) <= aspect <= 8:
        aspect = Fraction(1)  # invalid value in the header
    rotation = -round(image.rotation / 90) * 90 % 360
    unrotated = [round(image.width * aspect), image.height]
    width, height = reversed(unrotated) if rotation in (90, 270) else unrotated
    rate = next((r for r in (stream.average_rate, stream.guessed_rate) if r and 0 < r <= 1000), Fraction(25))
    return VideoProbe(
        container=container.format.name,
        codec=context.name,
        pix_fmt=image.format.name,
        width=width,
        height=height,
        coded_width=image.width,
        coded_height=image.height,
        rotation=rotation,
        is_mirrored=_is_mirrored(image),
        fps=rate,
        num_frames_header=stream.frames,
        duration_s=stream_duration_s(stream) or (container.duration or 0) / av.time_base,
        start_pts=image.pts or 0,
        time_base=stream.time_base,
        color_transfer=TRANSFERS.get(int(image.color_trc), ""),
        color_primaries=PRIMARIES.get(int(image.color_primaries), ""),
        color_matrix=MATRICES.get(int(image.colorspace), ""),
        color_range=RANGES.get(int(image.color_range), ""),
        is_hdr=int(image.color_trc) in HDR_TRANSFERS,
        has_audio=bool(container.streams.audio),
        bit_rate=container.bit_rate or 0,
    )


def stream_duration_s(stream: Any) -> float:
    """Duration in seconds that the stream's own header states, edit lists included; 0 if only the container has one."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # Matroska states the time of the end as "00:00:02.600000000"; mkvmerge uses keys such as DURATION-eng.
    for key, value in stream.metadata.items():
        if key.split("-")[0] == "DURATION":
            with contextlib.suppress(ValueError):
                hours, minutes, seconds = value.split(":")
                return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return 0.0


def _is_mirrored(image: av.VideoFrame) -> bool:
    """Whether the display matrix of a frame flips it in addition to a rotation, as for selfies."""
    try:
        matrix = image.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for another kind of side data of the frame, such as EXIF
        return False
    if matrix is None:
        return False
    a, b, _, c, d, *_ = (value / 65536 for value in np.frombuffer(bytes(matrix), np.int32).tolist())
    return a * d < b * c
