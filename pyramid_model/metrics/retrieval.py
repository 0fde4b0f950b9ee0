"""Whether a clip that was sampled from a training caption is nearest to the training clip with that caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def nearest(sample: np.ndarray, clips: Sequence[np.ndarray]) -> int:
    """Index of the clip with the least mean squared difference to a sample, frame by frame; uint8 (t h w c) each.

    Only the frames that both have are compared. All have one height and width.
    """
    distances = []
    for clip in clips:
        length = min(len(sample), len(clip))
        distances.append(np.mean((sample[:length].astype(np.float32) - clip[:length]) ** 2))
    return int(np.argmin(distances))


def retrieval_rate(samples: Sequence[np.ndarray], own: Sequence[int], clips: Sequence[np.ndarray]) -> float:
    """Share of the samples whose nearest clip is their own. own: index in `clips` for each sample.

    Chance is 1 / len(clips).
    """
    return float(np.mean([nearest(sample, clips) == index for sample, index in zip(samples, own, strict=True)]))
