"""Buckets: the sizes of training clips, and the choice of a bucket for a clip."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

# (height, width) of about the same area in common aspect ratios. Multiples of 64 px: 8 (VAE) x 2 (patch) x 4 (stages).
FAMILIES: dict[str, tuple[tuple[int, int], ...]] = {
    "384p": ((384, 640), (640, 384), (512, 512), (448, 576), (576, 448), (320, 768)),
    "768p": ((768, 1280), (1280, 768), (1024, 1024), (896, 1152), (1152, 896), (640, 1536)),
}
FAMILY_PATTERN = re.compile(r"(\d+p)x(\d+)@(\d+(?:\.\d+)?)")
PATTERN = re.compile(r"(\d+)x(\d+)x(\d+)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Bucket:
    """Size of training clips: height and width in px, number of frames, frames per second."""

    height: int
    width: int
    num_frames: int
    fps: float

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}@{self.fps:g}"


def parse_bucket(text: str) -> Bucket:
    """Parse a bucket such as `"384x640x121@24"`: height, width, frames, frames per second.

    Raises:
        ValueError: the text is not of this form, or a number in it is 0.
    """
    match = PATTERN.fullmatch(text)
    if not match or not all(float(number) for number in match.groups()):
        raise ValueError(
            f"{text!r} is not a bucket: write <height>x<width>x<frames>@<fps>, e.g. 384x640x121@24, or a family of "
            "aspect ratios, e.g. 384px121@24"
        )
    height, width, num_frames, fps = match.groups()
    return Bucket(int(height), int(width), int(num_frames), float(fps))


def expand_buckets(texts: Iterable[str]) -> tuple[str, ...]:
    """Normalise the text of buckets and expand families: `384px121@24` is all aspect ratios of 384p with 121 frames.

    Raises:
        ValueError: a text has neither form, a family does not exist, or its number of frames is not 1 + 8k.
    """
    buckets: dict[str, None] = {}
    for text in texts:
        family = FAMILY_PATTERN.fullmatch(text)
        if not family:
            buckets[str(parse_bucket(text))] = None
            continue
        name, num_frames, fps = family.groups()
        if name not in FAMILIES:
            raise ValueError(f"no family of buckets is called {name!r} ({text!r}): choose {' or '.join(FAMILIES)}")
        if int(num_frames) % 8 != 1:
            nearest = max(1, 1 + round((int(num_frames) - 1) / 8) * 8)
            raise ValueError(f"{text!r} has {num_frames} frames: latents need 1 + 8k, e.g. {nearest}")
        buckets |= {str(parse_bucket(f"{height}x{width}x{num_frames}@{fps}")): None for height, width in FAMILIES[name]}
    return tuple(buckets)


def num_frames_at(num_frames: int, clip_fps: Fraction | float, fps: float) -> int:
    """Number of frames when a clip is read at `fps`: the frames nearest to the times 0, 1/fps, 2/fps, …

    The last of these times is at most half a frame after the last frame, as in `video.read_clip`.
    """
    return math.floor((num_frames - 0.5) * fps / float(clip_fps) + 1e-6) + 1


def fitting_bucket(
    height: int, width: int, num_frames: int, clip_fps: Fraction | float, buckets: Sequence[Bucket], max_upscale: float
) -> tuple[Bucket | None, str]:
    """Choose the bucket of a clip: the nearest aspect ratio, then the largest area, then the most frames.

    Args:
        height, width: of the clip, px.
        num_frames: of the clip.
        clip_fps: frames per second of the clip.
        buckets: to choose from.
        max_upscale: largest factor by which the clip may be scaled up to cover the bucket.

    Returns:
        (bucket, "") or (None, reason); reason: too_short | too_small.
    """
    long_enough = [b for b in buckets if num_frames_at(num_frames, clip_fps, b.fps) >= b.num_frames]
    if not long_enough:
        return None, "too_short"
    candidates = [b for b in long_enough if max(b.height / height, b.width / width) <= max_upscale]
    if not candidates:
        return None, "too_small"

    def aspect_difference(bucket: Bucket) -> float:
        return round(abs(math.log((bucket.width / bucket.height) / (width / height))), 3)

    return min(candidates, key=lambda b: (aspect_difference(b), -b.height * b.width, -b.num_frames)), ""
