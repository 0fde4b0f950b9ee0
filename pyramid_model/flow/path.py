"""Training examples: noisy latents on the straight path of each stage, conditioned on corrupted history.

The same code covers still images, whole sequences and autoregressive video: an image is a clip of one frame, and a
whole sequence is a column without history.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyramid_model.flow.corruption import Corruption
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.jump import downsample, upsample
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.schedule import NUM_TIMESTEPS, Schedule, Stage, local_times


@dataclass(frozen=True)
class TrainingColumns:
    """Inputs and targets of one training step of the DiT. All lists have one entry for each of the g columns.

    columns: clips (b c t h w), history first, the noisy clip last. Column i holds samples i::g of the batch.
    targets: velocity of each noisy clip, in its shape.
    stages: stage of each column.
    local_t: position of each sample on its path, 0..1, (b,) for each column.
    timestep: 0..1000, (b*g,); row r belongs to sample r of the batch, as does row r of the text.
    """

    columns: list[list[Tensor]]
    targets: list[Tensor]
    stages: list[int]
    local_t: list[Tensor]
    timestep: Tensor


def stage_endpoints(fine: Tensor, coarse: Tensor | None, noise: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """Noisy and clean ends of the straight path that one stage learns.

    Args:
        fine: clean latents at this stage, (b c t h w).
        coarse: the same clip one stage below, (b c t h/2 w/2); None at stage 0, which starts from pure noise.
        noise: unit normal, (b c t h w); shared by both ends.
        stage: sigma at each end.

    Returns:
        (start, end), both (b c t h w). The velocity target is start - end.

    Source: Pyramidal Flow Matching, arXiv:2410.05954, spatial pyramid.
    """
    start = noise if coarse is None else stage.start * noise + (1 - stage.start) * upsample(coarse)
    end = stage.end * noise + (1 - stage.end) * fine
    return start, end


def noise_pyramid(noise: Tensor, num_stages: int) -> list[Tensor]:
    """Unit normal (b c t h w) at every stage, coarse to fine."""
    pyramid = [noise]
    for _ in range(num_stages - 1):
        pyramid.insert(0, 2 * downsample(pyramid[0]))  # a mean of 4 unit normals has std 1/2; restore unit variance
    return pyramid


def noisy_columns(
    latents: Tensor,
    schedule: Schedule,
    noise: Noise,
    sample_ratios: tuple[int, ...] = (1, 1, 1),
    num_units: tuple[int, ...] | None = None,
    part: tuple[float, float] = (0, 1),
) -> TrainingColumns:
    """Make training columns from a batch of clips.

    Random numbers are drawn in this order: noise for the whole batch; then for each column a position on the path per
    sample, a corruption strength per sample, and noise for each history clip, newest first.

    Args:
        latents: normalised, (n c t h w), n a multiple of the number of columns.
        schedule: stages of the pyramid.
        noise: source of random numbers.
        sample_ratios: columns per stage, coarse to fine; their sum is the number of columns.
        num_units: unit to train at each stage, counted from 1; the units before it are its history.
            None trains all frames of a clip at once, without history.
        part: of each stage's path, from 0, the noisy end, to 1; positions are drawn from it.

    Raises:
        ValueError: the batch does not divide into columns, or `sample_ratios` or `num_units` does not have one entry
            for each stage.
    """
    num_stages, g = schedule.config.num_stages, sum(sample_ratios)
    for name, values in (("sample_ratios", sample_ratios), ("num_units", num_units)):
        if values is not None and len(values) != num_stages:
            raise ValueError(f"{name} {values}: must have one entry for each of the {num_stages} stages")
    if latents.shape[0] % g:
        raise ValueError(f"batch of {latents.shape[0]} samples: must be a multiple of {g}, the sum of sample_ratios")
    clean = latent_pyramid(latents, num_stages)
    noises = noise_pyramid(noise.normal(*latents.shape).to(latents.dtype), num_stages)
    stages = [stage for stage, ratio in enumerate(sample_ratios) for _ in range(ratio)]

    columns, targets, positions, timesteps = [], [], [], []
    for column, stage in enumerate(stages):
        own_clean, own_noises = ([tensor[column::g] for tensor in pyramid] for pyramid in (clean, noises))
        position = part[0] + (part[1] - part[0]) * noise.uniform(latents.shape[0] // g)
        index = (position * NUM_TIMESTEPS).long().clamp(0, NUM_TIMESTEPS - 1)
        local_t = local_times().to(index.device)[index].to(latents.dtype)
        coarse = own_clean[stage - 1] if stage else None
        start, end = stage_endpoints(own_clean[stage], coarse, own_noises[stage], schedule.stages[stage])
        noisy, target = _per_sample(local_t) * start + (1 - _per_sample(local_t)) * end, start - end
        history, frames = _corrupted_history(own_clean, stage, num_units, schedule, noise)
        columns.append([*history, noisy[:, :, frames]])
        targets.append(target[:, :, frames])
        positions.append(local_t)
        timesteps.append(schedule.stages[stage].timesteps().to(index.device)[index].float())
    return TrainingColumns(columns, targets, stages, positions, torch.stack(timesteps, dim=1).flatten())


def _corrupted_history(
    clean: list[Tensor], stage: int, num_units: tuple[int, ...] | None, schedule: Schedule, noise: Noise
) -> tuple[list[Tensor], slice]:
    """Corrupted history clips, and the range of frames that they condition."""
    config = schedule.config
    corruption = Corruption.draw(noise, clean[0], config)  # even if there is no history, as in the published code
    if num_units is None:
        return [], slice(None)
    num_earlier = num_units[stage] - 1
    if num_earlier == 0:
        return [], slice(0, 1)
    stop = 1 + num_earlier * config.frames_per_unit
    start = stop - config.frames_per_unit
    past = [latents[:, :, :start] for latents in clean]
    clips = history_clips(past, stage, num_earlier, config.frames_per_unit)
    return corruption.apply_newest_first(clips, noise), slice(start, stop)


def _per_sample(values: Tensor) -> Tensor:
    """(b,) -> (b 1 1 1 1)."""
    return values[:, None, None, None, None]


def units_in(num_frames: int, frames_per_unit: int) -> int:
    """Number of whole units in a clip of `num_frames` latent frames; the first unit has one frame."""
    return 1 + (num_frames - 1) // frames_per_unit


def frames_of(unit: int, frames_per_unit: int) -> slice:
    """Range of latent frames of a unit, counted from 0; the first unit has one frame."""
    stop = 1 + unit * frames_per_unit
    return slice(max(0, stop - frames_per_unit) if unit else 0, stop)


def units_to_train(
    call: int, rank: int, sync_group: int, max_units: int, available_units: int, num_stages: int = 3
) -> tuple[int, ...]:
    """Unit that each stage trains in a step, as in the published code; argument `num_units` of `noisy_columns`.

    The ranks of a sync group get the same batch and train different units, so that together they cover the clip. The
    finest stage counts up while the other stages count down, which balances the number of tokens.

    Args:
        call: number of the call, from 1 as in the published code.
        rank: rank of this process.
        sync_group: ranks in a group; divides max_units.
        max_units: units in the longest clip of the training set.
        available_units: units in the clips of this batch.
        num_stages: stages of the pyramid.

    Returns:
        One unit for each stage, coarse to fine, counted from 1.

    Raises:
        ValueError: max_units is less than sync_group.
    """
    if max_units < sync_group:
        raise ValueError(
            f"sync_group {sync_group} is larger than the number of units in the longest clip, {max_units}: "
            "lower sync_group or use longer clips"
        )
    turn = call % (max_units // sync_group)
    fine = rank % sync_group + 1 + turn * sync_group
    units = [1 + max_units - fine] * (num_stages - 1) + [fine]
    return tuple(min(max(u, 1), available_units) for u in units)
