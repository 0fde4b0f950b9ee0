"""Loss of the published VAE: pixel error, perceptual distance, adversarial loss, and divergence of the latents.

It compares frames by `PerceptualDistance`, whose weights the user provides (`weights.load_perceptual`).
`train.vae_loss` is a simpler loss without pretrained networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import VAEGANConfig
from pyramid_model.vae.discriminator import PatchDiscriminator
from pyramid_model.vae.posterior import Posterior

# Layers of torchvision's networks: (channels, kernel, stride, padding) of a convolution with ReLU, or the side of a max
# pooling of stride 2. taps: the layers whose features are compared.
VGG16 = tuple(
    (n, 3, 1, 1) if n else 2 for n in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
)
ALEXNET = ((64, 11, 4, 2), 3, (192, 5, 1, 2), 3, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
NETWORKS = {"vgg16": (VGG16, (3, 8, 15, 22, 29)), "alexnet": (ALEXNET, (1, 4, 7, 9, 11))}
MAX_BALANCE = 1e4


class PerceptualDistance(nn.Module):
    """LPIPS: distance of two frames in the features of a network, weighted to agree with human judgement. Not trained.

    Source: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv:1801.03924, equation 1.

    network: vgg16 or alexnet.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Literal["vgg16", "alexnet"] = "vgg16"):
        super().__init__()
        shapes, self.taps = NETWORKS[network]
        layers: list[nn.Module] = []
        channels = [3]
        for shape in shapes:
            if isinstance(shape, int):
                layers.append(nn.MaxPool2d(shape, stride=2))
            else:
                width, *sizes = shape
                layers += [nn.Conv2d(channels[-1], width, *sizes), nn.ReLU()]
                channels.append(width)
        self.features = nn.Sequential(*layers)
        widths = [layers[tap - 1].out_channels for tap in self.taps]
        self.weights = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
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
            if i in self.taps:
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
    perceptual: PerceptualDistance | None,
    discriminator: Callable[[Tensor], Tensor],
    config: VAEGANConfig,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss that the VAE minimises.

    Args:
        frames: (b 3 t h w) in [-1, 1].
        restored: reconstruction of `frames`, with gradient.
        posterior: over the latents of `frames`.
        last_layer: weight of the decoder's last convolution; its gradients set the weight of the adversarial loss.
        perceptual, discriminator: networks that compare or classify single frames; without the first, its term is 0.
        config: weights of the terms.
        step: optimiser step, from 0; the adversarial loss starts at `config.adversarial_start`.

    Returns:
        The loss, and its terms without gradient: {"pixel", "perceptual", "reconstruction" (the weighted sum of the
        two), "kl"}, and from `config.adversarial_start` on {"adversarial", "adversarial_weight"} and the norms of both
        gradients at the last layer, {"reconstruction_grad", "adversarial_grad"}. All terms but "reconstruction" are
        before weighting.
    """
    real, fake = single_frames(frames), single_frames(restored)
    pixel = (real - fake).square().mean(dim=(1, 2, 3), keepdim=True)
    distance = perceptual(real, fake) if perceptual else torch.zeros_like(pixel)
    error = config.pixel_weight * pixel + config.perceptual_weight * distance
    reconstruction = (error / torch.tensor(config.logvar).exp() + config.logvar).mean()
    kl = posterior.kl().mean()
    loss = reconstruction + config.kl_weight * kl
    parts = {"pixel": pixel.mean(), "perceptual": distance.mean(), "reconstruction": reconstruction, "kl": kl}
    if step >= config.adversarial_start:
        adversarial = -discriminator(fake).mean()
        pull, push = (gradient_norm(term, last_layer) for term in (reconstruction, adversarial))
        weight = config.adversarial_weight * balance(pull, push)
        loss = loss + weight * adversarial
        parts |= {"adversarial": adversarial, "adversarial_weight": weight}
        parts |= {"reconstruction_grad": pull, "adversarial_grad": push}
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


def gradient_norm(term: Tensor, last_layer: Tensor) -> Tensor:
    """Norm of the gradient of a loss term with respect to the last layer; a constant."""
    (gradient,) = torch.autograd.grad(term, last_layer, retain_graph=True)
    return gradient.norm().detach()


def balance(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """Weight of the adversarial loss with which its gradient at the last layer is as large as the reconstruction's.

    Both are norms of gradients. Source: Taming Transformers for High-Resolution Image Synthesis, arXiv:2012.09841,
    equation 7.
    """
    return (reconstruction / (adversarial + 1e-4)).clamp(0, MAX_BALANCE)


def single_frames(clips: Tensor) -> Tensor:
    """(b c t h w) -> (b*t c h w)."""
    return rearrange(clips, "b c t h w -> (b t) c h w")
