"""Scorers that need no model: their names, and what each of them says of one clip.

To add one, write a function of a `ClipView` and give it a line in `SCORERS`: recipes may then name it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pyramid_model.metrics import frames as of_frames
from pyramid_model.metrics.codec_motion import codec_motion
from pyramid_model.metrics.movement import Movement, camera_motion, flow_speed, movement, shake
from pyramid_model.metrics.perceptual_hash import clip_hashes, frames_hash
from pyramid_model.video.borders import border_share, picture_box


@dataclass(frozen=True)
class ClipView:
    """What a scorer may look at."""

    frames: np.ndarray  # all frames of the clip in gray, (t h w) uint8, the longer side 256 px at most
    fps: float
    uri: str  # the encoded clip, for what only its stream tells

    @cached_property
    def movement(self) -> Movement:
        """What moves: measured once for all scorers that ask."""
        return movement(self.frames, self.fps)


class Score(NamedTuple):
    """What a scorer found."""

    value: float | None  # None where one number says nothing; the details do then
    details: Mapping[str, Any] = {}  # JSON-able


def _exposure(clip: ClipView) -> Score:
    dark, bright = of_frames.exposure(clip.frames)
    return Score(dark + bright, {"dark": round(dark, 5), "bright": round(bright, 5)})


def _borders(clip: ClipView) -> Score:
    """Details: the box of the picture as shares of width and height."""
    _, height, width = clip.frames.shape
    box = picture_box(clip.frames)
    left, top, right, bottom = box or (0, 0, width, height)
    shares = {"left": left / width, "top": top / height, "right": right / width, "bottom": bottom / height}
    return Score(border_share(box, height, width), {name: round(share, 5) for name, share in shares.items()})


def _codec_motion(clip: ClipView) -> Score:
    mean, quietest = codec_motion(clip.uri, clip.fps)
    return Score(mean, {} if quietest is None else {"quietest_ninth": round(quietest, 5)})


def _phash(clip: ClipView) -> Score:
    """No number: `tasks.selecting.duplicates` compares the hashes."""
    return Score(None, {"hashes": clip_hashes(clip.frames, clip.fps), "frames_hash": frames_hash(clip.frames)})


SCORERS: dict[str, Callable[[ClipView], Score]] = {
    "motion": lambda clip: Score(of_frames.motion(clip.frames)),
    "sharpness": lambda clip: Score(of_frames.sharpness(clip.frames)),
    "brightness": lambda clip: Score(of_frames.brightness(clip.frames)),
    "exposure": _exposure,
    "static_ratio": lambda clip: Score(of_frames.static_ratio(clip.frames)),
    "black_ratio": lambda clip: Score(of_frames.black_ratio(clip.frames)),
    "white_ratio": lambda clip: Score(of_frames.white_ratio(clip.frames)),
    "borders": _borders,
    "flow": lambda clip: Score(flow_speed(clip.movement)),
    "shake": lambda clip: Score(shake(clip.movement)),
    "camera_motion": lambda clip: Score(*camera_motion(clip.movement)),
    "phash": _phash,
    "codec_motion": _codec_motion,
}

# Computed while a video is cut, since its frames are at hand: phash and all others together take half a millisecond a
# frame each, decoding and encoding eight. Reading the motion vectors back would take one and a half.
IN_DECODE_PASS = tuple(name for name in SCORERS if name != "codec_motion")
