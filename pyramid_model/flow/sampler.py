"""Sampling: units one after another, each through all stages, each stage by Euler steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.jump import jump
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import noise_pyramid, units_in
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.flow.schedule import Schedule, euler_step, sampling_local_times
from pyramid_model.text import TextFeatures


def sample_video(
    dit: DiT,
    text: TextFeatures,
    negative: TextFeatures | None,
    schedule: Schedule,
    noise: Noise,
    size: tuple[int, int, int],
    first_steps: Sequence[int],
    steps: Sequence[int],
    guidance: Sequence[float],
    given: Sequence[Tensor] = (),
    reuse: HistoryReuse | None = None,
) -> Tensor:
    """Normalised latents (b c t h w) of whole clips, the given units included. Arguments as in `sample_units`."""
    units = sample_units(dit, text, negative, schedule, noise, size, first_steps, steps, guidance, given, reuse)
    return torch.cat([*given, *units], dim=2)


@torch.no_grad()
def sample_units(
    dit: DiT,
    text: TextFeatures,
    negative: TextFeatures | None,
    schedule: Schedule,
    noise: Noise,
    size: tuple[int, int, int],
    first_steps: Sequence[int],
    steps: Sequence[int],
    guidance: Sequence[float],
    given: Sequence[Tensor] = (),
    reuse: HistoryReuse | None = None,
) -> Iterator[Tensor]:
    """Yield the normalised latents of each new unit as soon as they are clean: one frame, then frames_per_unit each.

    Args:
        dit: predicts the velocity.
        text: one row a sample.
        negative: text to steer away from, one row a sample; None turns guidance off.
        schedule: stages of the pyramid.
        noise: where random numbers come from; a generator a sample makes a sample's clip independent of its batch.
        size: t, h and w of the clip in latents.
        first_steps: Euler steps of each stage for the first unit.
        steps: Euler steps of each stage for later units.
        guidance: guidance_scale of each unit, the given ones included; 1 = off.
        given: normalised latents of the units that the clip starts with, such as an encoded image.
        reuse: how history is remembered, made for this call; None is exact, within 1 GiB.

    Raises:
        ValueError: the size or the number of steps or scales does not fit the pyramid.
    """
    config = schedule.config
    check_size(size, schedule)
    num_units = units_in(size[0], config.frames_per_unit)
    if len(guidance) != num_units:
        raise ValueError(f"{len(guidance)} guidance scales for {num_units} units: give one a unit")
    starts = _starts(dit, text, schedule, noise, size)
    clean, reuse = [unit.to(starts.dtype) for unit in given], reuse or HistoryReuse(dit)
    for unit, scale in enumerate(guidance[len(clean) :], start=len(clean)):
        stop = 1 + unit * config.frames_per_unit
        start = starts[:, :, max(0, stop - config.frames_per_unit) if unit else 0 : stop]
        clean.append(
            sample_unit(reuse, text, negative, schedule, noise, start, clean, steps if unit else first_steps, scale)
        )
        yield clean[-1]


@torch.no_grad()
def sample_at_once(
    dit: DiT,
    text: TextFeatures,
    negative: TextFeatures | None,
    schedule: Schedule,
    noise: Noise,
    size: tuple[int, int, int],
    steps: Sequence[int],
    guidance_scale: float,
) -> Tensor:
    """Normalised latents (b c t h w) of whole clips, all frames together: for models trained without units.

    Arguments as in `sample_units` and `sample_unit`.

    Raises:
        ValueError: the height, the width or the number of steps does not fit the pyramid.
    """
    check_size((1, *size[1:]), schedule)
    starts = _starts(dit, text, schedule, noise, size)
    return sample_unit(HistoryReuse(dit), text, negative, schedule, noise, starts, [], steps, guidance_scale)


def _starts(dit: DiT, text: TextFeatures, schedule: Schedule, noise: Noise, size: tuple[int, int, int]) -> Tensor:
    """Noise of all frames at stage 0, (b c t h w), in the dtype that the model works in."""
    finest = noise.normal(text.mask.shape[0], dit.config.latent_channels, *size).to(text.embeds.dtype)
    return noise_pyramid(finest, schedule.config.num_stages)[0]


def sample_unit(
    dit: HistoryReuse,
    text: TextFeatures,
    negative: TextFeatures | None,
    schedule: Schedule,
    noise: Noise,
    start: Tensor,
    earlier: list[Tensor],
    steps: Sequence[int],
    guidance_scale: float,
) -> Tensor:
    """Normalised latents of one unit.

    Args:
        dit: predicts the velocity, and remembers history.
        text, negative, schedule, noise: as in `sample_units`.
        start: unit normal at stage 0, (b c t h w) with the frames of this unit.
        earlier: clean units before this one.
        steps: Euler steps of each stage.
        guidance_scale: 1 = off.
    """
    config = schedule.config
    if len(steps) != config.num_stages:
        raise ValueError(f"steps {tuple(steps)}: need one number for each of the {config.num_stages} stages")
    guided = negative is not None and guidance_scale != 1
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
        # as published, the timestep is told in the dtype of the latents
        for i, timestep in enumerate(stage.sampling_timesteps(num_steps).to(x.dtype).to(x.device)):
            clips = [*history, _twice(x) if guided else x]
            velocity = dit.velocity(clips, timestep.expand(len(rows.mask)), rows, index, i, num_steps)
            if guided:
                without, with_text = velocity.chunk(2)
                velocity = without + guidance_scale * (with_text - without)
            x = euler_step(x, velocity, local_t[i], local_t[i + 1])
    return x


def guidance_per_unit(first: float, rest: float, num_units: int) -> list[float]:
    """One scale for the first unit, another for the later ones."""
    return [first] + [rest] * (num_units - 1)


def falling_guidance(first: float, slope: float, least: float, num_units: int) -> list[float]:
    """A scale that falls by `slope` each unit, down to `least`."""
    return [max(first - slope * unit, least) for unit in range(num_units)]


def check_size(size: tuple[int, int, int], schedule: Schedule) -> None:
    """Raise ValueError unless a clip of t, h, w latents can be cut into the schedule's stages and units."""
    t, h, w = size
    multiple = 2**schedule.config.num_stages  # a 2x2 patch at the coarsest stage
    if h % multiple or w % multiple:
        raise ValueError(
            f"{h}x{w} latents do not divide into {schedule.config.num_stages} stages: height and width must be "
            f"multiples of {multiple} latents ({8 * multiple} px)"
        )
    per_unit = schedule.config.frames_per_unit
    if t < 1 or (t - 1) % per_unit:
        raise ValueError(f"{t} latent frames: need 1 + a multiple of frames_per_unit, which is {per_unit}")


def _twice(x: Tensor) -> Tensor:
    """The batch twice, for the rows without and with the prompt."""
    return torch.cat([x, x])
