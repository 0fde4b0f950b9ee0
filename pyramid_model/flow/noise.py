"""Where random numbers come from: explicit CPU generators, so that a seed means the same on every device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyramid_model.flow.jump import block_noise


class Noise:
    """Random tensors with a batch axis, drawn in the order they are asked for.

    With one generator, it draws whole batches. With a list, sample i of every batch comes from generator i, so that a
    sample's numbers do not depend on how many others it shares a batch with.

    dtype: of what is handed out. Numbers are drawn in float32, so a seed means nearly the same in every precision.
    """

    def __init__(
        self,
        generators: Generator | list[Generator],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.generators = generators
        self.device = device
        self.dtype = dtype

    def normal(self, *shape: int) -> Tensor:
        """Unit normal; the first size is the batch."""
        return self._draw(torch.randn, shape).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32; the first size is the batch."""
        return self._draw(torch.rand, shape)

    def block(self, *shape: int, gamma: float) -> Tensor:
        """Noise for a jump, (b c t h w): unit variance, correlation -gamma within each 2x2 block."""
        return block_noise(self._draw(torch.randn, shape), gamma).to(self.dtype)

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        if isinstance(self.generators, Generator):
            return draw(shape, generator=self.generators).to(self.device)
        if len(self.generators) != shape[0]:
            raise ValueError(f"{len(self.generators)} generators for a batch of {shape[0]}: give one a sample")
        return torch.stack([draw(shape[1:], generator=g) for g in self.generators]).to(self.device)
