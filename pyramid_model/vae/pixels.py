"""Between pixels as files hold them, uint8 with channels last, and as the VAE codes them."""

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
    """`to_uint8` on the frames' own device: a quarter of what float frames take to move or keep."""
    # Steps in place on one copy: the frames of a clip may be the largest tensor there is.
    levels = frames.float() * 127.5
    return levels.add_(127.5).clamp_(0, 255).to(torch.uint8).movedim(1, -1)
