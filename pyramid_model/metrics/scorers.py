"""Scorers that need no model: functions from a clip to a score, by name.

To add one, write its record in `facts.py` and a function of a `ClipView`, and pair them in `_PAIRS`: recipes may then
name it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pyramid_model.metrics import facts
from pyramid_model.metrics import frames as of_frames
from pyramid_model.metrics.codec_motion import codec_motion
from pyramid_model.metrics.movement import Movement, camera_motion, flow_speed, movement, shake
from pyramid_model.metrics.perceptual_hash import clip_hashes, frames_hash
from pyramid_model.video.borders import border_share, picture_box


@dataclass(frozen=True)
class ClipView:
    """Input of a scorer: one clip."""

    frames: np.ndarray  # all frames of the clip in gray, (t h w) uint8, the longer side 256 px at most
    fps: float
    uri: str  # the encoded clip, for scorers that read its stream

    @cached_property
    def movement(self) -> Movement:
        """Movement of the picture, measured once for all scorers that use it."""
        return movement(self.frames, self.fps)


class Score(NamedTuple):
    """Result of a scorer for one clip."""

    value: float | None  # None for a scorer without a number, and for a clip that is too short for it
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
    """Details without a value: `tasks.selecting.duplicates` compares the hashes."""
    return Score(None, {"hashes": clip_hashes(clip.frames, clip.fps), "frames_hash": frames_hash(clip.frames)})


_PAIRS: tuple[tuple[facts.ScorerFacts, Callable[[ClipView], Score]], ...] = (
    (facts.MOTION, lambda clip: Score(of_frames.motion(clip.frames))),
    (facts.SHARPNESS, lambda clip: Score(of_frames.sharpness(clip.frames))),
    (facts.BRIGHTNESS, lambda clip: Score(of_frames.brightness(clip.frames))),
    (facts.EXPOSURE, _exposure),
    (facts.STATIC_RATIO, lambda clip: Score(of_frames.static_ratio(clip.frames))),
    (facts.BLACK_RATIO, lambda clip: Score(of_frames.black_ratio(clip.frames))),
    (facts.WHITE_RATIO, lambda clip: Score(of_frames.white_ratio(clip.frames))),
    (facts.BORDERS, _borders),
    (facts.FLOW, lambda clip: Score(flow_speed(clip.movement))),
    (facts.SHAKE, lambda clip: Score(shake(clip.movement))),
    (facts.CAMERA_MOTION, lambda clip: Score(*camera_motion(clip.movement))),
    (facts.PHASH, _phash),
    (facts.CODEC_MOTION, _codec_motion),
)
SCORERS: dict[str, Callable[[ClipView], Score]] = {scorer.name: function for scorer, function in _PAIRS}

# Computed while a video is cut, because its frames are decoded then. Per frame, phash takes half a millisecond, all
# others together take another half, and decoding and encoding take eight.
IN_DECODE_PASS = tuple(scorer.name for scorer, _ in _PAIRS if scorer.reads == "decode pass")
