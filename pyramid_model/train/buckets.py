"""Buckets: the few sizes that training knows, and which of them a clip fits."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

# Sizes of one area in the common aspects, all multiples of 64 px: 8 (VAE) x 2 (patch) x 4 (three stages).
FAMILIES: dict[str, tuple[tuple[int, int], ...]] = {
    "384p": ((384, 640), (640, 384), (512, 512), (448, 576), (576, 448), (320, 768)),
    "768p": ((768, 1280), (1280, 768), (1024, 1024), (896, 1152), (1152, 896), (640, 1536)),
}
FAMILY_PATTERN = re.compile(r"(\d+p)x(\d+)@(\d+(?:\.\d+)?)")
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
        raise ValueError(
            f"{text!r} is no bucket: write <height>x<width>x<frames>@<fps>, e.g. 384x640x121@24, or a family of "
            "aspects, e.g. 384px121@24"
        )
    height, width, num_frames, fps = match.groups()
    return Bucket(int(height), int(width), int(num_frames), float(fps))


def expand_buckets(texts: Iterable[str]) -> tuple[str, ...]:
    """Buckets in their usual form, with families spelt out: `384px121@24` is all aspects of 384p at 121 frames.

    Raises:
        ValueError: one is of neither form, a family is not known, or its frames are not 1 + 8k, as latents are.
    """
    buckets: dict[str, None] = {}
    for text in texts:
        family = FAMILY_PATTERN.fullmatch(text)
        if not family:
            buckets[str(parse_bucket(text))] = None
            continue
        name, num_frames, fps = family.groups()
        if name not in FAMILIES:
            raise ValueError(f"there is no family of buckets {name!r} ({text!r}): there are {', '.join(FAMILIES)}")
        if int(num_frames) % 8 != 1:
            nearest = max(1, 1 + round((int(num_frames) - 1) / 8) * 8)
            raise ValueError(f"{text!r} has {num_frames} frames: latents need 1 + 8k, e.g. {nearest}")
        buckets |= {str(parse_bucket(f"{height}x{width}x{num_frames}@{fps}")): None for height, width in FAMILIES[name]}
    return tuple(buckets)


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
