"""Plain loss of the VAE: reconstruction error, and divergence of the latents from the unit normal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pyramid_model.metrics.quality import psnr, ssim
from pyramid_model.train.config import VAELossConfig
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.loss import PerceptualDistance, single_frames
from pyramid_model.vae.pixels import to_uint8, to_unit_range


def vae_loss(
    vae: CausalVideoVAE, frames: Tensor, config: VAELossConfig, generator: Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one batch, and its terms before weighting.

    Args:
        vae: the model.
        frames: (b 3 1+8k h w) in [-1, 1].
        config: weights of the terms.
        generator: draws the latents from the posterior.

    Returns:
        The loss, and {"mse", "l1", "kl"} without gradient. `kl` is in nats per latent value, so its weight does not
        depend on the length or size of the clips.
    """
    posterior = vae.encode(frames)
    restored = vae.decode(posterior.sample(generator))
    parts = {
        "mse": F.mse_loss(restored, frames),
        "l1": F.l1_loss(restored, frames),
        "kl": posterior.kl().sum() / posterior.mean.numel(),
    }
    return weighted_loss(parts, config)


def weighted_loss(parts: dict[str, Tensor], config: VAELossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms {"mse", "l1", "kl"}, and the terms without gradient."""
    loss = config.mse_weight * parts["mse"] + config.l1_weight * parts["l1"] + config.kl_weight * parts["kl"]
    return loss, {name: part.detach() for name, part in parts.items()}


class VAEObjective(nn.Module):
    """A VAE with its loss in one module, so that data parallelism can wrap the whole forward pass."""

    def __init__(self, vae: CausalVideoVAE, config: VAELossConfig):
        super().__init__()
        self.vae = vae
        self.config = config
        self.perceptual: PerceptualDistance | None = None  # LPIPS for validation, where the loss has it

    def forward(self, frames: Tensor, generator: Generator, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """See `vae_loss`. step: optimiser step; without effect here."""
        return vae_loss(self.vae, frames, self.config, generator)


@torch.no_grad()
def reconstruct(vae: CausalVideoVAE, clip: np.ndarray) -> np.ndarray:
    """Encode and decode a clip without sampling noise: uint8 (t h w 3) -> same shape."""
    frames = to_unit_range(clip)[None].to(next(vae.parameters()).device)
    restored = vae.decode(vae.encode(frames).mode())
    return to_uint8(restored)[0]


def validate_vae(
    vae: CausalVideoVAE, clips: Sequence[np.ndarray], perceptual: PerceptualDistance | None = None
) -> dict[str, float]:
    """Mean quality of the reconstructions of held-out clips, uint8 (t h w 3) each.

    Returns:
        {"val_psnr": dB, "val_ssim": -1..1, "val_mse": squared error of frames in [-1, 1]}, and with `perceptual`
        {"val_lpips": from 0, lower is better}, mean over the clips.
    """
    psnrs, ssims, errors, distances = [], [], [], []
    for clip in clips:
        restored = reconstruct(vae, clip)
        psnrs.append(psnr(clip, restored))
        ssims.append(ssim(clip, restored))
        errors.append(float(np.square((clip.astype(np.float32) - restored) / 127.5).mean()))
        if perceptual:
            distances.append(_lpips(perceptual, clip, restored))
    figures = {"val_psnr": psnrs, "val_ssim": ssims, "val_mse": errors, "val_lpips": distances}
    return {name: float(np.mean(values)) for name, values in figures.items() if values}


@torch.no_grad()
def _lpips(perceptual: PerceptualDistance, clip: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of the frames of two clips, uint8 (t h w 3) each."""
    device = perceptual.shift.device
    pairs = zip(*(single_frames(to_unit_range(x)[None]).to(device).split(1) for x in (clip, other)), strict=True)
    return float(torch.stack([perceptual(a, b) for a, b in pairs]).mean())
