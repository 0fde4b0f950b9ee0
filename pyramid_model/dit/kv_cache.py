"""KV cache: keys and values of text and history that later calls of a transformer use again."""

from __future__ import annotations

import torch
from torch import Tensor


class BlockKVCache:
    """KV cache of one block: rotated keys, and values, of the first tokens of a sequence.

    Attributes:
        keys, values: (b n h d) each; None while the cache is empty.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Append new keys and values to the cached ones, and cache the first `num_tokens` of the result.

        Args:
            keys, values: of the new tokens, (b n h d) each.
            num_tokens: tokens that the cache holds after the call.

        Returns:
            Keys and values of the cached tokens followed by the new ones, (b cached+n h d) each.
        """
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=1), torch.cat([self.values, values], dim=1)
        if num_tokens != self.num_tokens:
            self.keys, self.values = keys[:, :num_tokens].clone(), values[:, :num_tokens].clone()
        return keys, values

    def cut(self, num_tokens: int) -> None:
        """Drop all but the first `num_tokens` tokens."""
        if self.keys is None or self.values is None or num_tokens == self.num_tokens:
            return
        self.keys = self.keys[:, :num_tokens].clone() if num_tokens else None
        self.values = self.values[:, :num_tokens].clone() if num_tokens else None

    @property
    def num_tokens(self) -> int:
        """Number of cached tokens."""
        return 0 if self.keys is None else self.keys.shape[1]

    @property
    def num_bytes(self) -> int:
        """Size of keys and values in bytes."""
        return sum(x.nbytes for x in (self.keys, self.values) if x is not None)


class KVCache:
    """KV cache of all blocks of a transformer, for the text and the first frames of one column.

    Text and first frame attend to each other, so the cache never holds the text without the first frame.

    Attributes:
        ends: number of tokens up to the end of each cached frame, the text included.
        blocks: one cache for each block.
    """

    def __init__(self, num_blocks: int):
        self.ends: tuple[int, ...] = ()
        self.blocks = [BlockKVCache() for _ in range(num_blocks)]

    @property
    def num_frames(self) -> int:
        """Number of cached latent frames."""
        return len(self.ends)

    @property
    def num_bytes(self) -> int:
        """Size of the cache in bytes, over all blocks."""
        return sum(block.num_bytes for block in self.blocks)

    def cut(self, num_frames: int) -> None:
        """Drop all but the first `num_frames` frames."""
        self.ends = self.ends[:num_frames]
        for block in self.blocks:
            block.cut(self.ends[-1] if self.ends else 0)
