"""From text features to frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyramid_model.config import PyramidConfig
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import units_in
from pyramid_model.flow.sampler import guidance_per_unit, sample_units
from pyramid_model.flow.schedule import Schedule
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.text import TextFeatures
from pyramid_model.train.vae_loss import to_uint8
from pyramid_model.vae.autoencoder import CausalVideoVAE


@dataclass(frozen=True)
class Generated:
    """Clips made together.

    videos: uint8 (t h w 3) each. latents: as the VAE decodes them, (b c t h w). timings: seconds for the whole batch.
    """

    videos: list[np.ndarray]
    latents: Tensor
    timings: dict[str, float]


@torch.no_grad()
def generate_videos(
    dit: DiT,
    vae: CausalVideoVAE,
    cond: TextFeatures,
    uncond: TextFeatures,
    request: GenerationRequest,
    seeds: Sequence[int],
    pyramid: PyramidConfig,
    on_unit: Callable[[int, int], None] | None = None,
) -> Generated:
    """Sample one clip a row of `cond`.

    A clip depends on its text and its seed alone, not on what shares its batch.

    Args:
        dit, vae: models that belong together.
        cond: prompts, one row each.
        uncond: what guidance steers away from: one row for all, or one each.
        request: size, length, steps, guidance.
        seeds: one a row.
        pyramid: stages the DiT was trained with.
        on_unit: called with (units done, units in all).

    Raises:
        ValueError: the request does not fit the models, or the VAE has no latent norm.
    """
    request.check(vae.config, pyramid)
    norm = vae.config.latent_norm
    if norm is None:
        raise ValueError("the VAE's config.json has no latent_norm: measure it on training latents first")
    device, schedule = next(dit.parameters()).device, Schedule(pyramid)
    noise = Noise([torch.Generator().manual_seed(seed) for seed in seeds], device)
    space = vae.config.space_factor
    size = (request.num_latent_frames, request.height // space, request.width // space)
    num_units = units_in(size[0], pyramid.frames_per_unit)
    started = time.perf_counter()
    units = []
    for unit in sample_units(
        *(dit, cond, uncond.repeat_to(len(seeds)), schedule, noise, size),
        first_steps=request.steps_per_stage("num_inference_steps", pyramid),
        steps=request.steps_per_stage("video_num_inference_steps", pyramid),
        guidance=guidance_per_unit(request.guidance_scale, request.video_guidance_scale, num_units),
    ):
        units.append(unit)
        if on_unit:
            on_unit(len(units), num_units)
    latents = norm.denormalise(torch.cat(units, dim=2))
    sampled = time.perf_counter()
    videos = [to_uint8(vae.decode(clip[None], request.decode_window))[0] for clip in latents]
    timings = {"sample_s": sampled - started, "decode_s": time.perf_counter() - sampled}
    return Generated(videos, latents, timings)
