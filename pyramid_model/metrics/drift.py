"""Drift of a long clip: what its end has gained or lost against its beginning.

A model that generates a clip piece by piece from its own output tends to lose detail and to gain contrast and colour.
The figures compare the first and the last 15 % of the frames. Real clips drift too, as scenes change, so a figure means
something beside that of real clips of the same length, and beside their motion: a frozen clip does not drift.
"""

from __future__ import annotations

import math

import numpy as np

from pyramid_model.metrics.frames import brightness, sharpness

SHARE = 0.15  # of the frames at either end


def saturation(frames: np.ndarray) -> float:
    """Mean distance of the largest from the smallest of R, G and B, 0 (gray) to 255. frames: uint8 (t h w 3)."""
    return float(np.mean([np.mean(frame.max(axis=-1) - frame.min(axis=-1)) for frame in frames]))


def drift(frames: np.ndarray) -> dict[str, float]:
    """Absolute change from the first to the last 15 % of the frames.

    Args:
        frames: uint8 (t h w 3), at least two.

    Returns:
        {"drift_luma": 0..255, "drift_saturation": 0..255, "drift_sharpness": from 0, in the unit of `sharpness`}; lower
        is steadier.

    Raises:
        ValueError: there are fewer than two frames.
    """
    if len(frames) < 2:
        raise ValueError(f"drift of {len(frames)} frames: at least two are needed")
    length = max(1, math.floor(SHARE * len(frames)))
    ends = frames[:length], frames[-length:]
    measures = {"luma": brightness, "saturation": saturation, "sharpness": sharpness}
    return {f"drift_{name}": abs(measure(ends[1]) - measure(ends[0])) for name, measure in measures.items()}
