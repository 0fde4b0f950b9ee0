"""Scorers that need no model: their names, and what each of them says of one clip.

To add one, write a function of a `ClipView` and give it a line in `SCORERS`: recipes may then name it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pyramid_model.metrics.frames import brightness, motion, sharpness
from pyramid_model.metrics.perceptual_hash import clip_hashes, frames_hash


@dataclass(frozen=True)
class ClipView:
    """What a scorer may look at."""

    frames: np.ndarray  # all frames of the clip in gray, (t h w) uint8, the longer side 256 px at most
    fps: float
    uri: str  # the encoded clip, for what only its stream tells


class Score(NamedTuple):
    """What a scorer found."""

    value: float | None  # None where one number says nothing; the details do then
    details: Mapping[str, Any] = {}  # JSON-able


SCORERS: dict[str, Callable[[ClipView], Score]] = {
    "motion": lambda clip: Score(motion(clip.frames)),
    "sharpness": lambda clip: Score(sharpness(clip.frames)),
    "brightness": lambda clip: Score(brightness(clip.frames)),
    "phash": lambda clip: Score(
        None, {"hashes": clip_hashes(clip.frames, clip.fps), "frames_hash": frames_hash(clip.frames)}
    ),
}

# Computed while a video is cut, since its frames are at hand; the others when a recipe names them.
IN_DECODE_PASS = ("motion", "sharpness", "brightness", "phash")
