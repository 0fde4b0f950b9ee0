"""Keys and values of history that later calls share."""

from __future__ import annotations

import torch
from torch import Tensor


class BlockMemory:
    """Keys, already turned, and values of the first tokens of a sequence, in one block; (b n h d), None at first."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """What is remembered followed by what is new; the first `keep` tokens of both are remembered from now on."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=1), torch.cat([self.values, values], dim=1)
        if keep != self.num_tokens:
            self.keys, self.values = keys[:, :keep].clone(), values[:, :keep].clone()
        return keys, values

    def cut(self, num_tokens: int) -> None:
        """Forget all but the first tokens."""
        if self.keys is None or self.values is None or num_tokens == self.num_tokens:
            return
        self.keys = self.keys[:, :num_tokens].clone() if num_tokens else None
        self.values = self.values[:, :num_tokens].clone() if num_tokens else None

    @property
    def num_tokens(self) -> int:
        """Tokens that are remembered."""
        return 0 if self.keys is None else self.keys.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return sum(x.nbytes for x in (self.keys, self.values) if x is not None)


class HistoryMemory:
    """Keys and values of the text and of the first frames of a column, in every block of a transformer.

    The text sees the first frame, so there is no memory of the text alone.

    Attributes:
        ends: tokens up to the end of each frame that is remembered, the text included.
        blocks: one entry a block.
    """

    def __init__(self, num_blocks: int):
        self.ends: tuple[int, ...] = ()
        self.blocks = [BlockMemory() for _ in range(num_blocks)]

    @property
    def num_frames(self) -> int:
        """Latent frames that are remembered."""
        return len(self.ends)

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return sum(block.num_bytes for block in self.blocks)

    def cut(self, num_frames: int) -> None:
        """Forget all but the first frames."""
        self.ends = self.ends[:num_frames]
        for block in self.blocks:
            block.cut(self.ends[-1] if self.ends else 0)
