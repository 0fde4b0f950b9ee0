"""Conversion between uint8 frames with channels last and the VAE's float frames in [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_unit_range(frames: np.ndarray) -> Tensor:
    """uint8 frames (t h w 3) -> float (3 t h w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def to_uint8(frames: Tensor) -> np.ndarray:
    """Frames (b 3 t h w), nominally in [-1, 1] -> uint8 (b t h w 3). Truncates as the published pipeline does."""
    return uint8_pixels(frames).cpu().numpy()


def uint8_pixels(frames: Tensor) -> Tensor:
    """As `to_uint8`, but a tensor on the device of the frames: a quarter of the bytes of float frames."""
    # In place on one copy, since the frames of a clip may be the largest tensor in memory.
    levels = frames.float() * 127.5
    return levels.add_(127.5).clamp_(0, 255).to(torch.uint8).movedim(1, -1)
