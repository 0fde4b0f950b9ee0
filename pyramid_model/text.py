"""Text features: what a prompt becomes before the DiT sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class TextFeatures:
    """Encoded prompts, one row each.

    embeds: token features (r n d); mask: True where a token is real (r n) bool; pooled: one vector a prompt (r p).
    """

    embeds: Tensor
    mask: Tensor
    pooled: Tensor

    def concat(self, other: TextFeatures) -> TextFeatures:
        """Rows of both, these first. The shorter one is padded with masked tokens."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        a, b = self._padded(length), other._padded(length)
        return TextFeatures(
            torch.cat([a.embeds, b.embeds]), torch.cat([a.mask, b.mask]), torch.cat([a.pooled, b.pooled])
        )

    def to(self, *args: object, **kwargs: object) -> TextFeatures:
        """As `Tensor.to`; a dtype reaches the features, never the mask."""
        embeds, pooled = self.embeds.to(*args, **kwargs), self.pooled.to(*args, **kwargs)  # pyright: ignore
        return TextFeatures(embeds, self.mask.to(embeds.device), pooled)

    def _padded(self, length: int) -> TextFeatures:
        extra = length - self.mask.shape[1]
        if not extra:
            return self
        return TextFeatures(F.pad(self.embeds, (0, 0, 0, extra)), F.pad(self.mask, (0, extra)), self.pooled)
