"""Discriminator of the adversarial VAE loss: it classifies patches of a frame as real or reconstructed."""

from __future__ import annotations

from torch import Tensor, nn

MAX_WIDENING = 8


class PatchDiscriminator(nn.Module):
    """A PatchGAN over single frames: strided convolutions to one logit per patch, above 0 for real.

    Source: Image-to-Image Translation with Conditional Adversarial Networks, arXiv:1611.07004, section 3.2.2.
    """

    def __init__(self, num_layers: int = 4, channels: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, num_layers + 1):
            before, width = width, channels * min(2**i, MAX_WIDENING)
            stride = 2 if i < num_layers else 1
            layers += [nn.Conv2d(before, width, 4, stride, padding=1), nn.InstanceNorm2d(width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (n 3 h w) in [-1, 1] -> logits (n 1 h' w'). With 4 layers, h and w must be at least 48."""
        return self.layers(frames)
