"""From text features to frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from pyramid_model.config import LatentNorm, PyramidConfig, VAEConfig
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import units_in
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.flow.sampler import falling_guidance, guidance_per_unit, sample_at_once, sample_units
from pyramid_model.flow.schedule import Schedule
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.text import TextFeatures
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.pixels import to_uint8

OnUnit = Callable[[int, int], None]  # (units done, units in all)


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
    on_unit: OnUnit | None = None,
    autoregressive: bool = True,
) -> Generated:
    """Sample one clip a row of `cond`. `VideoPipeline.generate` starts from prompts and does more.

    A clip depends on its text and its seed alone, not on what shares its batch. Latents that are not finite are
    returned like any others.

    Args:
        dit, vae: models that belong together.
        cond: prompts, one row each.
        uncond: what guidance steers away from: one row for all, or one each.
        request: size, length, steps, guidance.
        seeds: one a row.
        pyramid: stages the DiT was trained with.
        on_unit: called with (units done, units in all).
        autoregressive: whether the DiT was trained unit by unit; else all frames are made at once.

    Raises:
        ValueError: the request does not fit the models, or the VAE has no latent norm.
    """
    request.check(vae.config, pyramid)
    norm = latent_norm(vae.config)
    started = time.perf_counter()
    reuse = HistoryReuse(dit, request.refresh_every)
    options = {"on_unit": on_unit, "autoregressive": autoregressive}
    units = list(sample_clips(reuse, cond, uncond, request, seeded(seeds), pyramid, vae.config, **options))
    latents = norm.denormalise(torch.cat(units, dim=2))
    sampled = time.perf_counter()
    videos = [to_uint8(vae.decode(clip[None], request.decode_window))[0] for clip in latents]
    timings = {"sample_s": sampled - started, "decode_s": time.perf_counter() - sampled}
    return Generated(videos, latents, timings)


@torch.no_grad()
def sample_clips(
    reuse: HistoryReuse,
    cond: TextFeatures,
    uncond: TextFeatures,
    request: GenerationRequest,
    generators: list[Generator],
    pyramid: PyramidConfig,
    vae: VAEConfig,
    given: Sequence[Tensor] = (),
    device: torch.device | None = None,
    on_unit: OnUnit | None = None,
    autoregressive: bool = True,
) -> Iterator[Tensor]:
    """Yield the normalised latents of each new unit, (b c t h w), as soon as they are clean.

    Args:
        reuse: the DiT, and what it remembers of history.
        cond, uncond, request, pyramid, on_unit, autoregressive: as in `generate_videos`.
        generators: one a row of `cond`, on the CPU.
        vae: says how many pixels a latent stands for.
        given: normalised latents of the units that the clips start with; they are not yielded. None unless the DiT is
            autoregressive.
        device: where to compute; None: where the DiT's weights are.
    """
    dit = reuse.dit
    weight = next(dit.parameters())
    device = device or weight.device
    noise = Noise(generators, device)
    size = (request.num_latent_frames, request.height // vae.space_factor, request.width // vae.space_factor)
    texts = (cond.to(device, weight.dtype), uncond.repeat_to(len(generators)).to(device, weight.dtype))
    first_steps = request.steps_per_stage("num_inference_steps", pyramid)
    if not autoregressive:
        assert not given, "`check_given` refuses it"
        clip = sample_at_once(dit, *texts, Schedule(pyramid), noise, size, first_steps, request.guidance_scale)
        if on_unit:
            on_unit(1, 1)
        yield clip
        return
    num_units = units_in(size[0], pyramid.frames_per_unit)
    new = sample_units(
        dit,
        *texts,
        Schedule(pyramid),
        noise,
        size,
        first_steps=first_steps,
        steps=request.steps_per_stage("video_num_inference_steps", pyramid),
        guidance=guidance(request, num_units),
        given=given,
        reuse=reuse,
    )
    for done, unit in enumerate(new, start=len(given) + 1):
        if on_unit:
            on_unit(done, num_units)
        yield unit


def guidance(request: GenerationRequest, num_units: int) -> list[float]:
    """guidance_scale of each unit; the first frame is the first unit, given or not."""
    if request.guidance_falloff:
        return falling_guidance(request.guidance_scale, request.guidance_falloff, request.min_guidance_scale, num_units)
    return guidance_per_unit(request.guidance_scale, request.video_guidance_scale, num_units)


def seeded(seeds: Sequence[int]) -> list[Generator]:
    """A generator a sample, on the CPU, so that a seed means the same on every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latent_norm(vae: VAEConfig) -> LatentNorm:
    """Shift and scale of a VAE's latents.

    Raises:
        ValueError: its config has none.
    """
    if vae.latent_norm is None:
        raise ValueError("the VAE's config.json has no latent_norm: measure it on training latents first")
    return vae.latent_norm
