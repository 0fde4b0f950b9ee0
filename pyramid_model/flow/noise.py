"""Random numbers from explicit CPU generators, so that a seed gives the same numbers on every device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyramid_model.flow.jump import block_noise


class Noise:
    """Random tensors with a batch axis. The numbers depend on the order of the calls.

    Args:
        generators: one generator draws whole batches. From a list, generator i draws sample i of every batch, so the
            numbers of a sample do not depend on the other samples of its batch.
        device: device of the returned tensors; the numbers are drawn on the CPU.
    """

    def __init__(self, generators: Generator | list[Generator], device: str | torch.device = "cpu"):
        self.generators = generators
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Unit normal, float32; shape[0] is the batch size."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32; shape[0] is the batch size."""
        return self._draw(torch.rand, shape)

    def block(self, *shape: int, gamma: float) -> Tensor:
        """Noise for a jump, (b c t h w): unit variance, correlation -gamma within each 2x2 block."""
        return block_noise(self.normal(*shape), gamma)

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        if isinstance(self.generators, Generator):
            return draw(shape, generator=self.generators).to(self.device)
        if len(self.generators) != shape[0]:
            raise ValueError(
                f"{len(self.generators)} generators for a batch of {shape[0]} samples: pass one for each sample"
            )
        return torch.stack([draw(shape[1:], generator=g) for g in self.generators]).to(self.device)
