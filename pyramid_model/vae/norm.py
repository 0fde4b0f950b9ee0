"""Measure the latent normalisation of a newly trained VAE."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pyramid_model.config import LatentNorm


def measure_latent_norm(latents: Iterable[Tensor]) -> LatentNorm:
    """Shift and scale of each channel, for the first latent frame and for later ones, measured on encoded clips.

    Args:
        latents: tensors (b c t h w) or (c t h w), not normalised.

    Raises:
        ValueError: `latents` is empty.
    """
    first, rest = [], []
    for clip in latents:
        clip = clip.detach().double().cpu()
        frames = (clip if clip.ndim == 5 else clip[None]).movedim(1, 0)  # c b t h w
        first.append(frames[:, :, 0].flatten(1))
        rest.append(frames[:, :, 1:].flatten(1))
    if not first:
        raise ValueError("no latents to measure: encode at least one clip first")
    first_values, rest_values = torch.cat(first, dim=1), torch.cat(rest, dim=1)
    if not rest_values.shape[1]:
        rest_values = first_values  # still images only
    return LatentNorm(
        first_shift=_floats(first_values.mean(1)),
        first_scale=_floats(1 / first_values.std(1).clamp_min(1e-6)),
        rest_shift=_floats(rest_values.mean(1)),
        rest_scale=_floats(1 / rest_values.std(1).clamp_min(1e-6)),
    )


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(round(v, 6) for v in values.tolist())
