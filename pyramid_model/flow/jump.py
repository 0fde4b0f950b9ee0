"""The jump to the next stage: upsample, then renoise so that the result lies on the finer stage's path."""

from __future__ import annotations

import math

from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from pyramid_model.flow.schedule import Stage


def jump(latents: Tensor, stage: Stage, noise: Tensor, gamma: float) -> Tensor:
    """Clean end of the stage below -> noisy end of this stage.

    Args:
        latents: result of the stage below, (b c t h w).
        stage: stage that starts.
        noise: unit variance, correlation -gamma within each 2x2 block, (b c t 2h 2w).
        gamma: see `noise`.

    Returns:
        (b c t 2h 2w).

    Source: Pyramidal Flow Matching, arXiv:2410.05954, renoising at jump points.
    """
    alpha, beta = jump_weights(stage, gamma)
    return alpha * upsample(latents) + beta * noise


def jump_weights(stage: Stage, gamma: float) -> tuple[float, float]:
    """Weights (alpha, beta) of the upsampled latents and of the noise in the jump to `stage`."""
    alpha = 1 / (math.sqrt(1 + 1 / gamma) * stage.reached + 1 - stage.reached)
    return alpha, alpha * stage.reached / math.sqrt(gamma)


def block_noise(noise: Tensor, gamma: float) -> Tensor:
    """Unit normal -> noise with correlation -gamma between the four values of each 2x2 block; both (b c t h w).

    The square root of the covariance (1 + gamma) I - gamma 11' scales the deviations from the block's mean by
    sqrt(1 + gamma) and the mean by sqrt(1 - 3 gamma). A Cholesky factor would not exist at gamma = 1/3.
    """
    mean = upsample(reduce(noise, "b c t (h p) (w q) -> b c t h w", "mean", p=2, q=2))
    return math.sqrt(1 + gamma) * (noise - mean) + math.sqrt(max(0.0, 1 - 3 * gamma)) * mean


def upsample(latents: Tensor) -> Tensor:
    """Double h and w by repeating each value: (b c t h w) -> (b c t 2h 2w)."""
    return latents.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def downsample(latents: Tensor) -> Tensor:
    """Halve h and w, bilinear, frame by frame: (b c t h w) -> (b c t h/2 w/2)."""
    frames = rearrange(latents, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, scale_factor=0.5, mode="bilinear", align_corners=False)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=latents.shape[0])
