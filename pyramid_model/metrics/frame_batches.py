"""Frames of several clips through a torch model in batches that do not stop at the end of a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor


@torch.inference_mode()
def over_frames(
    clips: Sequence[np.ndarray],
    prepare: Callable[[np.ndarray], Tensor],
    model: Callable[[Tensor], Tensor],
    batch_size: int,
) -> list[Tensor]:
    """What a model says of every frame, one tensor (t …) float32 a clip.

    Args:
        clips: uint8 RGB, (t h w c) each.
        prepare: one frame (h w c) -> what the model takes of it (c h w).
        model: prepared frames (b c h w) -> (b …).
        batch_size: frames at a time.
    """
    found: list[Tensor] = []
    for batch in _batches((frame for clip in clips for frame in clip), batch_size):
        found.append(model(torch.stack([prepare(frame) for frame in batch])).float().cpu())
    return list(torch.cat(found).split([len(clip) for clip in clips]))


def _batches(frames: Iterable[np.ndarray], size: int) -> Iterable[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
