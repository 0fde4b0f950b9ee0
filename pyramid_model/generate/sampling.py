"""Sampler settings of a request: sizes in latents, Euler steps and guidance of each unit, random generators."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator

from pyramid_model.config import LatentNorm, PyramidConfig, VAEConfig
from pyramid_model.flow.path import units_in
from pyramid_model.flow.sampler import Sampling, falling_guidance, guidance_per_unit
from pyramid_model.generate.request import GenerationRequest


def sampling_of(request: GenerationRequest, vae: VAEConfig, pyramid: PyramidConfig, at_once: bool = False) -> Sampling:
    """The sampler's settings for a request. at_once: the DiT generates all frames at once.

    Raises:
        ValueError: the request does not fit the models.
    """
    request.check(vae, pyramid)
    num_units = 1 if at_once else units_in(request.num_latent_frames, pyramid.frames_per_unit)
    return Sampling(
        pyramid=pyramid,
        size=(request.num_latent_frames, request.height // vae.space_factor, request.width // vae.space_factor),
        first_steps=request.steps_per_stage("num_inference_steps", pyramid),
        steps=request.steps_per_stage("video_num_inference_steps", pyramid),
        guidance=guidance(request, num_units),
        at_once=at_once,
    )


def guidance(request: GenerationRequest, num_units: int) -> list[float]:
    """guidance_scale of each unit; the first frame is the first unit, given or not."""
    if request.guidance_falloff:
        return falling_guidance(request.guidance_scale, request.guidance_falloff, request.min_guidance_scale, num_units)
    return guidance_per_unit(request.guidance_scale, request.video_guidance_scale, num_units)


def seeded(seeds: Sequence[int]) -> list[Generator]:
    """One generator per sample, on the CPU, so that a seed means the same on every device."""
    return [Generator().manual_seed(seed) for seed in seeds]


def latent_norm(vae: VAEConfig) -> LatentNorm:
    """Shift and scale of a VAE's latents.

    Raises:
        ValueError: the config has no latent norm.
    """
    if vae.latent_norm is None:
        raise ValueError("the VAE's config.json has no latent_norm: measure it on training latents first")
    return vae.latent_norm
