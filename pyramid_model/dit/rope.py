"""Rotary position embedding over time, height and width."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

THETA = 10_000.0


def rotation_table(positions: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Cosines and sines by which each token's channel pairs are turned.

    Args:
        positions: (n a), one coordinate an axis, float64.
        axes: channels given to each axis; even.

    Returns:
        (2 n d/2) float32: cosines, then sines; the axes follow each other along the last dimension.
    """
    angles = []
    for axis, dim in enumerate(axes):
        frequencies = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles.append(positions[:, axis, None].double() * frequencies)
    angle = torch.cat(angles, dim=1)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of x (b h n d) by a table (2 n d/2); computed in float32."""
    cos, sin = table
    even, odd = rearrange(x.float(), "b h n (p two) -> two b h n p", two=2)
    turned = torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1)
    return turned.flatten(-2).to(x.dtype)
