"""Rotary position embedding (RoPE, arXiv:2104.09864) over time, height and width."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def rotation_table(positions: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Rotation of each token's channel pairs, as complex numbers of modulus 1.

    Args:
        positions: coordinates of each token along each of the `a` axes, (n a) float64.
        axes: number of channels that each axis rotates; even.

    Returns:
        (n 1 d/2) complex64, the same for all heads; the axes are concatenated along the last dimension.
    """
    angles = []
    for axis, dim in enumerate(axes):
        frequencies = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles.append(positions[:, axis, None].double() * frequencies)
    angle = torch.cat(angles, dim=1)[:, None]
    return torch.complex(angle.cos().float(), angle.sin().float())


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of x (b n h d) by a table (n 1 d/2); computed in float32, in x.dtype."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)
