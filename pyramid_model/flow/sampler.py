"""Sampling: units one after another, each unit through all stages, each stage by Euler steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyramid_model.config import PyramidConfig
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.jump import jump
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import frames_of, noise_pyramid, units_in
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.flow.schedule import Schedule, euler_step, sampling_local_times
from pyramid_model.text import TextFeatures

OFF = (0, 1)  # guidance scales without guidance: the published code guides above 0 only, and 1 changes nothing


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling that do not depend on the prompt.

    Attributes:
        pyramid: stages and units of the DiT.
        size: t, h and w of a clip in latents.
        first_steps: Euler steps of each stage for the first unit.
        steps: Euler steps of each stage for later units.
        guidance: guidance_scale of each unit, including given units; 0 and 1 = off, as in the published code.
        at_once: sample all frames together as one unit, for a DiT that was trained without units.

    Raises:
        ValueError: the size, the number of steps or the number of guidance scales does not fit the pyramid.
    """

    pyramid: PyramidConfig
    size: tuple[int, int, int]
    first_steps: Sequence[int]
    steps: Sequence[int]
    guidance: Sequence[float]
    at_once: bool = False

    def __post_init__(self) -> None:
        check_size((1, *self.size[1:]) if self.at_once else self.size, self.pyramid)
        if len(self.guidance) != self.num_units:
            raise ValueError(
                f"{len(self.guidance)} guidance scales for {self.num_units} units: pass one scale for each unit"
            )
        for steps in (self.first_steps, self.steps):
            if len(steps) != self.pyramid.num_stages:
                raise ValueError(
                    f"steps {tuple(steps)}: must have one entry for each of {self.pyramid.num_stages} stages"
                )

    @property
    def num_units(self) -> int:
        """Number of units of a clip."""
        return 1 if self.at_once else units_in(self.size[0], self.pyramid.frames_per_unit)

    def frames_of(self, unit: int) -> slice:
        """Range of latent frames of a unit, counted from 0."""
        if self.at_once:
            return slice(0, self.size[0])
        return frames_of(unit, self.pyramid.frames_per_unit)


def sample_video(
    dit: DiT,
    text: TextFeatures,
    negative: TextFeatures | None,
    sampling: Sampling,
    noise: Noise,
    given: Sequence[Tensor] = (),
    reuse: HistoryReuse | None = None,
) -> Tensor:
    """Normalised latents (b c t h w) of whole clips, including the given units. Arguments as in `sample_units`."""
    return torch.cat([*given, *sample_units(dit, text, negative, sampling, noise, given, reuse)], dim=2)


@torch.inference_mode()
def sample_units(
    dit: DiT,
    text: TextFeatures,
    negative: TextFeatures | None,
    sampling: Sampling,
    noise: Noise,
    given: Sequence[Tensor] = (),
    reuse: HistoryReuse | None = None,
) -> Iterator[Tensor]:
    """Yield the normalised latents of each new unit (b c t h w): 1 frame for the first, then frames_per_unit each.

    Args:
        dit: predicts the velocity.
        text: one row for each sample.
        negative: negative prompt, one row for each sample; None turns guidance off.
        sampling: size, steps and guidance.
        noise: source of random numbers; with one generator per sample, a clip does not depend on its batch.
        given: normalised latents of the units that the clip starts with, such as an encoded image.
        reuse: KV caches of history, made for this call; None: exact, at most 1 GiB.
    """
    schedule, reuse = Schedule(sampling.pyramid), reuse or HistoryReuse(dit)
    finest = noise.normal(text.mask.shape[0], dit.config.latent_channels, *sampling.size).to(text.embeds.dtype)
    starts = noise_pyramid(finest, sampling.pyramid.num_stages)[0]
    clean = [unit.to(starts.dtype) for unit in given]
    for unit in range(len(clean), sampling.num_units):
        start = starts[:, :, sampling.frames_of(unit)]
        clean.append(_sample_unit(reuse, text, negative, sampling, schedule, noise, start, clean))
        yield clean[-1]


def _sample_unit(
    reuse: HistoryReuse,
    text: TextFeatures,
    negative: TextFeatures | None,
    sampling: Sampling,
    schedule: Schedule,
    noise: Noise,
    start: Tensor,
    earlier: list[Tensor],
) -> Tensor:
    """Normalised latents of one unit.

    Args:
        reuse: the DiT with its KV caches of history.
        text, negative, sampling, noise: as in `sample_units`.
        schedule: of the sampling's pyramid.
        start: unit normal at stage 0, (b c t h w) with the frames of this unit.
        earlier: clean latents of the units before this one.
    """
    config, steps = schedule.config, sampling.steps if earlier else sampling.first_steps
    guidance_scale = sampling.guidance[len(earlier)]
    guided = negative is not None and guidance_scale not in OFF
    rows = negative.concat(text) if negative is not None and guided else text
    past = latent_pyramid(torch.cat(earlier, dim=2), config.num_stages) if earlier else []
    x = start
    for index, (stage, num_steps) in enumerate(zip(schedule.stages, steps, strict=True)):
        if index:
            shape = (*x.shape[:3], 2 * x.shape[3], 2 * x.shape[4])
            x = jump(x, stage, noise.block(*shape, gamma=config.gamma).to(x.dtype), config.gamma)
        history = [
            _twice(clip) if guided else clip
            for clip in history_clips(past, index, len(earlier), config.frames_per_unit)
        ]
        local_t = sampling_local_times(num_steps).tolist()
        # as in the published code, the timestep has the dtype of the latents
        for i, timestep in enumerate(stage.sampling_timesteps(num_steps).to(x.dtype).to(x.device)):
            clips = [*history, _twice(x) if guided else x]
            velocity = reuse.velocity(clips, timestep.expand(len(rows.mask)), rows, index, i, num_steps)
            if guided:
                unconditional, conditional = velocity.chunk(2)
                velocity = unconditional + guidance_scale * (conditional - unconditional)
            x = euler_step(x, velocity, local_t[i], local_t[i + 1])
    return x


def guidance_per_unit(first: float, rest: float, num_units: int) -> list[float]:
    """Guidance scale of each unit: `first` for the first unit, `rest` for all later units."""
    return [first] + [rest] * (num_units - 1)


def falling_guidance(first: float, slope: float, least: float, num_units: int) -> list[float]:
    """Guidance scale of each unit: it falls by `slope` from unit to unit, but not below `least`."""
    return [max(first - slope * unit, least) for unit in range(num_units)]


def check_size(size: tuple[int, int, int], pyramid: PyramidConfig) -> None:
    """Check that a clip divides into the stages and units of the pyramid.

    Args:
        size: t, h and w of the clip in latents.
        pyramid: stages and units.

    Raises:
        ValueError: the clip does not divide.
    """
    t, h, w = size
    multiple = 2**pyramid.num_stages  # a 2x2 patch at the coarsest stage
    if h % multiple or w % multiple:
        raise ValueError(
            f"{h}x{w} latents do not divide into {pyramid.num_stages} stages: height and width must be "
            f"multiples of {multiple} latents ({8 * multiple} px)"
        )
    per_unit = pyramid.frames_per_unit
    if t < 1 or (t - 1) % per_unit:
        raise ValueError(
            f"{t} latent frames do not divide into units: must be 1 + a multiple of frames_per_unit ({per_unit})"
        )


def _twice(x: Tensor) -> Tensor:
    """x concatenated with itself along the batch: one half for the rows without the prompt, one for those with it."""
    return torch.cat([x, x])
