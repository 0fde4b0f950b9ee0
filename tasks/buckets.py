"""Buckets: the few sizes that training knows, and which of them a clip fits."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

PATTERN = re.compile(r"(\d+)x(\d+)x(\d+)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Bucket:
    """Height and width in px, number of frames, frames a second."""

    height: int
    width: int
    num_frames: int
    fps: float

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}@{self.fps:g}"


def parse_bucket(text: str) -> Bucket:
    """`"384x640x121@24"`: height, width, frames, frames a second.

    Raises:
        ValueError: it is not of this form, or a number in it is 0.
    """
    match = PATTERN.fullmatch(text)
    if not match or not all(float(number) for number in match.groups()):
        raise ValueError(f"{text!r} is no bucket: write <height>x<width>x<frames>@<fps>, e.g. 384x640x121@24")
    height, width, num_frames, fps = match.groups()
    return Bucket(int(height), int(width), int(num_frames), float(fps))


def num_frames_at(num_frames: int, clip_fps: Fraction | float, fps: float) -> int:
    """Frames that a clip gives when it is read at another rate: those nearest to the times 0, 1/fps, 2/fps, …

    The last of these times lies at most half a frame behind the last frame, as in `video.read_clip`.
    """
    return math.floor((num_frames - 0.5) * fps / float(clip_fps) + 1e-6) + 1


def fitting_bucket(
    height: int, width: int, num_frames: int, clip_fps: Fraction | float, buckets: Sequence[Bucket], max_upscale: float
) -> tuple[Bucket | None, str]:
    """The bucket for a clip: of those it fills, the nearest aspect, then the largest, then the longest.

    Returns:
        (bucket, "") or (None, why none fits: too_short | too_small).
    """
    long_enough = [b for b in buckets if num_frames_at(num_frames, clip_fps, b.fps) >= b.num_frames]
    if not long_enough:
        return None, "too_short"
    filled = [b for b in long_enough if max(b.height / height, b.width / width) <= max_upscale]
    if not filled:
        return None, "too_small"

    def unlikeness(bucket: Bucket) -> float:
        return round(abs(math.log((bucket.width / bucket.height) / (width / height))), 3)

    return min(filled, key=lambda b: (unlikeness(b), -b.height * b.width, -b.num_frames)), ""
