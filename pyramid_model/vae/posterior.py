"""Output of the encoder: a normal distribution for each latent value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Posterior:
    """Diagonal normal over latents. mean, logvar: (b c t h w)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """Posterior from moments: mean and log variance stacked along channels, (b 2c t h w)."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30, 20))

    @property
    def std(self) -> Tensor:
        """Standard deviation, (b c t h w)."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Draw latents, (b c t h w). The generator must be on the CPU, so that a seed is the same on every device."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """The most likely latents, (b c t h w)."""
        return self.mean

    def kl(self) -> Tensor:
        """Divergence from the unit normal in nats, summed over t, h and w: (b c)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(dim=(2, 3, 4))
