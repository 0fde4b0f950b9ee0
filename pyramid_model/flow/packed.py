"""Packed training: several units of a clip in one call, so that most tokens carry loss.

With clean history time, a history clip depends on the text and on earlier history alone. The history of unit u at stage
s is [all older units at stage 0, …, unit u-2 at stage s-1, unit u-1 at stage s]: units of which two are neighbours in
time are neighbours in resolution too, until stage 0 is reached. So all units whose oldest history is at stage 0 share
that part, and each of them is a branch that continues it (`dit.branches`). The first s + 1 units of a stage share no
history, because the text attends to their first frame, which has another resolution in each; they are columns of their
own.

Every unit gets the same velocity as alone, with the same corrupted history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pyramid_model.dit.branches import Branch, Branches
from pyramid_model.flow.corruption import Corruption
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import frames_of, noise_pyramid, stage_endpoints
from pyramid_model.flow.schedule import NUM_TIMESTEPS, Schedule, local_times


@dataclass
class PackedColumns:
    """Inputs and targets of one training step of a DiT with clean history time.

    columns, branches: arguments of the DiT.
    rows: for each column, the samples of the batch that it has, in order.
    timestep: of each noisy clip, 0..1000, (b,) each.
    targets: velocity of each noisy clip, in its shape.
    stages, units: of each noisy clip; units are counted from 0.
    """

    columns: list[list[Tensor]] = field(default_factory=list)
    branches: list[Branches] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    timestep: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    stages: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)


def packed_columns(
    latents: Tensor, schedule: Schedule, noise: Noise, sample_ratios: Sequence[int], units: Sequence[int]
) -> PackedColumns:
    """Make training columns in which each sample trains all the given units of one stage.

    Random numbers are drawn in this order: noise for the whole batch; then for each stage's samples a position on the
    path per unit and sample, a corruption strength per sample, and noise for the history, coarse to fine.

    Args:
        latents: normalised, (n c t h w), n a multiple of the sum of sample_ratios; sample i has the stage of the
            column i modulo that sum.
        schedule: stages of the pyramid.
        noise: source of random numbers.
        sample_ratios: samples of each stage, coarse to fine.
        units: units to train, counted from 0, in ascending order.

    Raises:
        ValueError: the batch does not divide, or there is no unit.
    """
    num_stages, g = schedule.config.num_stages, sum(sample_ratios)
    if latents.shape[0] % g or not units:
        raise ValueError(
            f"batch of {latents.shape[0]} samples and units {units}: a multiple of {g} and a unit at least"
        )
    clean = latent_pyramid(latents, num_stages)
    noises = noise_pyramid(noise.normal(*latents.shape).to(latents.dtype), num_stages)
    packed = PackedColumns()
    for column, stage in enumerate([stage for stage, ratio in enumerate(sample_ratios) for _ in range(ratio)]):
        own_clean, own_noises = ([tensor[column::g] for tensor in pyramid] for pyramid in (clean, noises))
        noisy = _noisy_units(packed, own_clean, own_noises, stage, units, schedule, noise)
        past = _corrupted(own_clean, stage, units, schedule, noise)
        rows = list(range(column, latents.shape[0], g))
        _append_columns(packed, noisy, past, stage, rows, schedule.config.frames_per_unit)
    return packed


def _noisy_units(
    packed: PackedColumns,
    clean: list[Tensor],
    noises: list[Tensor],
    stage: int,
    units: Sequence[int],
    schedule: Schedule,
    noise: Noise,
) -> dict[int, Tensor]:
    """The noisy clip of each unit; appends its timestep and target."""
    coarse = clean[stage - 1] if stage else None
    start, end = stage_endpoints(clean[stage], coarse, noises[stage], schedule.stages[stage])
    index = (noise.uniform(clean[0].shape[0], len(units)) * NUM_TIMESTEPS).long().clamp(0, NUM_TIMESTEPS - 1)
    local_t = local_times().to(index.device)[index].to(clean[0].dtype)[:, :, None, None, None, None]
    timestep = schedule.stages[stage].timesteps().to(index.device)[index].float()
    noisy = {}
    for number, unit in enumerate(units):
        frames = frames_of(unit, schedule.config.frames_per_unit)
        from_, to = start[:, :, frames], end[:, :, frames]
        noisy[unit] = local_t[:, number] * from_ + (1 - local_t[:, number]) * to
        packed.timestep.append(timestep[:, number])
        packed.targets.append(from_ - to)
        packed.stages.append(stage)
        packed.units.append(unit)
    return noisy


def _corrupted(clean: list[Tensor], stage: int, units: Sequence[int], schedule: Schedule, noise: Noise) -> list[Tensor]:
    """The history of the last unit at the stages up to `stage`, corrupted."""
    corruption = Corruption.draw(noise, clean[0], schedule.config)
    num_frames = frames_of(units[-1], schedule.config.frames_per_unit).start
    past = [latents[:, :, :num_frames] for latents in clean[: stage + 1]]
    return [corruption.apply(clip, noise) for clip in past]


def _append_columns(
    packed: PackedColumns, noisy: dict[int, Tensor], past: list[Tensor], stage: int, rows: list[int], per_unit: int
) -> None:
    """Append an ordinary column for each of the first units, and one with branches for the others."""
    shared, branches = [], []
    for unit, clip in noisy.items():
        earlier = [latents[:, :, : frames_of(unit, per_unit).start] for latents in past]
        history = history_clips(earlier, stage, unit, per_unit)
        if unit <= stage:
            _append(packed, [*history, clip], (), rows)
            continue
        num_shared = sum(own.shape[2] for own in history if own.shape[3] == past[0].shape[3])
        own = [part for part in history if part.shape[3] != past[0].shape[3]]
        shared += [*own, clip]
        branches.append(Branch(len(own) + 1, num_shared))
    if branches:
        _append(packed, [past[0][:, :, : branches[-1].num_shared], *shared], tuple(branches), rows)


def _append(packed: PackedColumns, column: list[Tensor], branches: Branches, rows: list[int]) -> None:
    packed.columns.append(column)
    packed.branches.append(branches)
    packed.rows.append(rows)
