"""Application of a torch model to the frames of several clips, in batches that span clips."""

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
    """Results of a model for every frame.

    Args:
        clips: uint8 RGB, (t h w c) each.
        prepare: converts a frame (h w c) to an input of the model (c h w).
        model: inputs (b c h w) -> results (b …).
        batch_size: frames at a time.

    Returns:
        One tensor (t …) per clip, float32 on the CPU.
    """
    results: list[Tensor] = []
    for batch in _batches((frame for clip in clips for frame in clip), batch_size):
        results.append(model(torch.stack([prepare(frame) for frame in batch])).float().cpu())
    return list(torch.cat(results).split([len(clip) for clip in clips]))


def _batches(frames: Iterable[np.ndarray], size: int) -> Iterable[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
