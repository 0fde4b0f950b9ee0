"""Loss of the published VAE: pixel error, perceptual distance, adversarial loss, and divergence of the latents.

It needs `PerceptualDistance` with weights that the user provides (`weights.load_perceptual`). `train.vae_loss` is a
simpler loss without pretrained networks.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import VAEGANConfig
from pyramid_model.vae.discriminator import PatchDiscriminator
from pyramid_model.vae.posterior import Posterior

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}  # layers of VGG16 whose features are compared: number of channels
MAX_BALANCE = 1e4


class PerceptualDistance(nn.Module):
    """LPIPS: distance of two frames in VGG16 features, weighted to agree with human judgement. Has no gradients.

    Source: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv:1801.03924, equation 1.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in VGG16:
            if isinstance(width, int):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.weights = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in TAPS.values())
        # mean and standard deviation of ImageNet, for frames in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, frames: Tensor, others: Tensor) -> Tensor:
        """Two sets of frames (n 3 h w) in [-1, 1] -> distance of each pair, (n 1 1 1)."""
        x, y = ((images - self.shift) / self.scale for images in (frames, others))
        distance = x.new_zeros(x.shape[0], 1, 1, 1)
        weights = iter(self.weights)
        for i, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if i in TAPS:
                difference = (unit_length(x) - unit_length(y)).square()
                distance = distance + next(weights)(difference).mean(dim=(2, 3), keepdim=True)
        return distance


def unit_length(features: Tensor) -> Tensor:
    """Each position's feature vector scaled to length 1; (n c h w)."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def restoration_loss(
    frames: Tensor,
    restored: Tensor,
    posterior: Posterior,
    last_layer: Tensor,
    perceptual: PerceptualDistance,
    discriminator: PatchDiscriminator,
    config: VAEGANConfig,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss that the VAE minimises.

    Args:
        frames: (b 3 t h w) in [-1, 1].
        restored: reconstruction of `frames`, with gradient.
        posterior: over the latents of `frames`.
        last_layer: weight of the decoder's last convolution; its gradients set the weight of the adversarial loss.
        perceptual, discriminator: networks that compare or classify single frames.
        config: weights of the terms.
        step: optimiser step, from 0; the adversarial loss starts at `config.adversarial_start`.

    Returns:
        The loss, and its terms without gradient: {"pixel", "perceptual", "reconstruction" (the weighted sum of the
        two), "kl"}, and from `config.adversarial_start` on {"adversarial", "adversarial_weight"}. All terms but
        "reconstruction" are before weighting.
    """
    real, fake = single_frames(frames), single_frames(restored)
    pixel = (real - fake).square().mean(dim=(1, 2, 3), keepdim=True)
    distance = perceptual(real, fake)
    error = config.pixel_weight * pixel + config.perceptual_weight * distance
    reconstruction = (error / torch.tensor(config.logvar).exp() + config.logvar).mean()
    kl = posterior.kl().mean()
    loss = reconstruction + config.kl_weight * kl
    parts = {"pixel": pixel.mean(), "perceptual": distance.mean(), "reconstruction": reconstruction, "kl": kl}
    if step >= config.adversarial_start:
        adversarial = -discriminator(fake).mean()
        weight = config.adversarial_weight * balance(reconstruction, adversarial, last_layer)
        loss = loss + weight * adversarial
        parts |= {"adversarial": adversarial, "adversarial_weight": weight}
    return loss, {name: part.detach() for name, part in parts.items()}


def discriminator_loss(
    frames: Tensor, restored: Tensor, discriminator: PatchDiscriminator, config: VAEGANConfig, step: int
) -> Tensor:
    """Hinge loss that the discriminator minimises; 0 before `config.adversarial_start`.

    frames, restored: (b 3 t h w) in [-1, 1]; the gradient reaches the discriminator only.
    """
    if step < config.adversarial_start:
        return frames.new_zeros(())
    real, fake = (discriminator(single_frames(x).detach()) for x in (frames, restored))
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def balance(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Weight of the adversarial loss that makes its gradient at the last layer as large as the reconstruction's.

    Source: Taming Transformers for High-Resolution Image Synthesis, arXiv:2012.09841, equation 7.
    """
    (reconstruction_grad,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (adversarial_grad,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (reconstruction_grad.norm() / (adversarial_grad.norm() + 1e-4)).clamp(0, MAX_BALANCE).detach()


def single_frames(clips: Tensor) -> Tensor:
    """(b c t h w) -> (b*t c h w)."""
    return rearrange(clips, "b c t h w -> (b t) c h w")
