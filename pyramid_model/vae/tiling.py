"""Coding frames in overlapping tiles, so that memory depends on the size of a tile and not on that of the frames.

Normalisation and attention are then computed within a tile, so results differ from those without tiles: use tiles only
if the frames do not fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.25  # share of a tile that overlaps with the next one
ALIGN = 4  # latents; a side of a tile is a multiple of this, so that its overlap is a whole number of latents


@dataclass(frozen=True)
class Tile:
    """Height and width of tiles in px. Each tile starts 3/4 of a side after the previous one."""

    height: int
    width: int

    @classmethod
    def fitting(cls, height: int, width: int, largest: int, space_factor: int = 8) -> Tile:
        """The smallest equal tiles that cover height x width px, at most as many as sides of `largest` px need.

        Tiles with sides of `largest` px would leave narrow tiles at the lower and right edges.

        Raises:
            ValueError: `largest` is less than the smallest possible side.
        """
        if largest < ALIGN * space_factor:
            raise ValueError(f"tiles of at most {largest} px a side are too small: at least {ALIGN * space_factor} px")
        sides = (_fitting_side(side // space_factor, largest // space_factor) for side in (height, width))
        return cls(*(side * space_factor for side in sides))

    def covers(self, height: int, width: int) -> bool:
        """Whether one tile covers a frame of height x width px."""
        return height <= self.height and width <= self.width

    def in_latents(self, space_factor: int) -> tuple[int, int]:
        """Height and width in latents.

        Raises:
            ValueError: a side is not a multiple of ALIGN latents.
        """
        multiple = ALIGN * space_factor
        if min(self.height, self.width) < multiple or self.height % multiple or self.width % multiple:
            raise ValueError(f"tiles of {self.height}x{self.width} px: both sides must be multiples of {multiple} px")
        return self.height // space_factor, self.width // space_factor


def _fitting_side(side: int, largest: int) -> int:
    """Least multiple of ALIGN that needs at most as many tiles to cover `side` as `largest`; all in latents."""
    largest -= largest % ALIGN
    count = 1 if side <= largest else math.ceil(side / (largest * (1 - OVERLAP)))
    return ALIGN * math.ceil(side / (count * (1 - OVERLAP)) / ALIGN)


def code_tiled(x: Tensor, code: Callable[[Tensor], Tensor], tile: tuple[int, int], out_tile: tuple[int, int]) -> Tensor:
    """Code overlapping tiles one by one and blend the results.

    The overlap of each tile is blended with the tile above, then with the tile on the left, which are themselves
    blended already.

    Args:
        x: (b c t h w).
        code: maps a tile of x to its result, (b c' t' h' w').
        tile: height and width of a tile of x.
        out_tile: height and width of the result of a tile.

    Returns:
        Result for all of x, (b c' t' h' w').

    Source: the published code's tiled encode and decode.
    """
    steps = [side - int(side * OVERLAP) for side in tile]
    blends = [int(side * OVERLAP) for side in out_tile]
    keep_h, keep_w = (side - blend for side, blend in zip(out_tile, blends, strict=True))
    whole = None
    above: list[Tensor] = []  # bottom edges of the previous row of tiles
    for i, top in enumerate(range(0, x.shape[3], steps[0])):
        below: list[Tensor] = []
        before = None  # right edge of the previous tile
        for j, left in enumerate(range(0, x.shape[4], steps[1])):
            result = code(x[:, :, :, top : top + tile[0], left : left + tile[1]])
            if i:
                result = blend(above[j], result, blends[0], dim=3)
            if before is not None:
                result = blend(before, result, blends[1], dim=4)
            below.append(result[:, :, :, -blends[0] :].clone())
            before = result[:, :, :, :, -blends[1] :].clone()
            if whole is None:
                zipped = zip(x.shape[3:], out_tile, tile, strict=True)
                sides = (side * out_side // tile_side for side, out_side, tile_side in zipped)
                whole = result.new_empty(*result.shape[:3], *sides)
            part = result[:, :, :, :keep_h, :keep_w]
            whole[:, :, :, i * keep_h :, j * keep_w :][:, :, :, : part.shape[3], : part.shape[4]] = part
        above = below
    assert whole is not None, "every frame has at least one tile"
    return whole


def blend(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """`after`, with its first `overlap` values along `dim` blended linearly with the last ones of `before`."""
    overlap = min(overlap, before.shape[dim], after.shape[dim])
    if not overlap:
        return after
    shape = [1] * after.ndim
    shape[dim] = overlap
    share = (torch.arange(overlap, device=after.device, dtype=after.dtype) / overlap).view(shape)
    tail = before.narrow(dim, before.shape[dim] - overlap, overlap)
    head, rest = after.split([overlap, after.shape[dim] - overlap], dim)
    return torch.cat([tail * (1 - share) + head * share, rest], dim)
