"""Coding a picture in overlapping tiles, so that memory depends on the size of a tile and not on that of the picture.

Normalisation and attention then see a tile instead of the picture, so tiled results differ from whole ones: tile only
what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.25  # of a tile with the next one
ALIGN = 4  # latents; a quarter of a tile is then a whole number of them


@dataclass(frozen=True)
class Tile:
    """Height and width in px of the tiles that a clip is cut into; each starts 3/4 of a tile after the last one."""

    height: int
    width: int

    @classmethod
    def fitting(cls, height: int, width: int, largest: int, space_factor: int = 8) -> Tile:
        """Equal tiles for frames of height x width px: no more of them than tiles of `largest` px a side, but smaller.

        What a tile adds to its neighbours then divides the frame (to 4 latents). Tiles of a fixed size are ragged at
        the lower and right edges instead, and larger than they need to be everywhere else.

        Raises:
            ValueError: `largest` is too small for a tile.
        """
        if largest < ALIGN * space_factor:
            raise ValueError(f"tiles of at most {largest} px a side: the least is {ALIGN * space_factor} px")
        sides = (_fitting_side(side // space_factor, largest // space_factor) for side in (height, width))
        return cls(*(side * space_factor for side in sides))

    def covers(self, height: int, width: int) -> bool:
        """Whether frames of height x width px are one tile."""
        return height <= self.height and width <= self.width

    def in_latents(self, space_factor: int) -> tuple[int, int]:
        """Height and width in latents.

        Raises:
            ValueError: a side is no multiple of what makes its overlap a whole number of latents.
        """
        multiple = ALIGN * space_factor
        if min(self.height, self.width) < multiple or self.height % multiple or self.width % multiple:
            raise ValueError(f"tiles of {self.height}x{self.width} px: both sides must be multiples of {multiple} px")
        return self.height // space_factor, self.width // space_factor


def _fitting_side(side: int, largest: int) -> int:
    """Least multiple of ALIGN, in latents, of which no more are needed for `side` than of `largest`."""
    largest -= largest % ALIGN
    count = 1 if side <= largest else math.ceil(side / (largest * (1 - OVERLAP)))
    return ALIGN * math.ceil(side / (count * (1 - OVERLAP)) / ALIGN)


def code_tiled(x: Tensor, code: Callable[[Tensor], Tensor], tile: tuple[int, int], out_tile: tuple[int, int]) -> Tensor:
    """Code overlapping tiles one by one and blend them into one another.

    Each tile is blended over its overlap with its neighbour above, then with the one to its left, both as they stand
    after their own blending.

    Args:
        x: (b c t h w).
        code: from a tile of x to the tile's result, (b c' t' h' w').
        tile: height and width of a tile of x.
        out_tile: the same of its result.

    Returns:
        (b c' t' h' w') of the whole.

    Source: the published code's tiled encode and decode.
    """
    steps = [side - int(side * OVERLAP) for side in tile]
    blends = [int(side * OVERLAP) for side in out_tile]
    keep_h, keep_w = (side - blend for side, blend in zip(out_tile, blends, strict=True))
    whole = None
    above: list[Tensor] = []  # bottom edges of the row of tiles before
    for i, top in enumerate(range(0, x.shape[3], steps[0])):
        below: list[Tensor] = []
        before = None  # right edge of the tile before
        for j, left in enumerate(range(0, x.shape[4], steps[1])):
            result = code(x[:, :, :, top : top + tile[0], left : left + tile[1]])
            if i:
                result = blend(above[j], result, blends[0], dim=3)
            if before is not None:
                result = blend(before, result, blends[1], dim=4)
            below.append(result[:, :, :, -blends[0] :].clone())
            before = result[:, :, :, :, -blends[1] :].clone()
            if whole is None:
                sides = (side * after // own for side, after, own in zip(x.shape[3:], out_tile, tile, strict=True))
                whole = result.new_empty(*result.shape[:3], *sides)
            kept = result[:, :, :, :keep_h, :keep_w]
            whole[:, :, :, i * keep_h :, j * keep_w :][:, :, :, : kept.shape[3], : kept.shape[4]] = kept
        above = below
    assert whole is not None, "every picture has a tile"
    return whole


def blend(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """`after`, with its first values along `dim` faded in from the last ones of `before`."""
    overlap = min(overlap, before.shape[dim], after.shape[dim])
    if not overlap:
        return after
    shape = [1] * after.ndim
    shape[dim] = overlap
    share = (torch.arange(overlap, device=after.device, dtype=after.dtype) / overlap).view(shape)
    tail = before.narrow(dim, before.shape[dim] - overlap, overlap)
    head, rest = after.split([overlap, after.shape[dim] - overlap], dim)
    return torch.cat([tail * (1 - share) + head * share, rest], dim)
