"""Validation of a DiT: its loss on held-out clips by stage and timestep, and with history that it made itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyramid_model.config import PyramidConfig
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import frames_of, units_in
from pyramid_model.flow.sampler import Sampling, sample_video
from pyramid_model.flow.schedule import Schedule
from pyramid_model.metrics.linear_predictor import LinearPredictor
from pyramid_model.text import TextFeatures, stack_features
from pyramid_model.train.config import DiTLossConfig
from pyramid_model.train.dit_loss import dit_loss

MAX_UNITS = 3  # of a clip that a validation covers
NUM_BINS = 4  # equal parts of a stage's path, the noisiest first
ROLLOUT_STEPS = 4  # Euler steps of each stage with which the history of a roll-out is sampled


@torch.no_grad()
def validate_dit(
    dit: DiT | LinearPredictor,
    latents: Sequence[Tensor],
    texts: Sequence[tuple[Tensor, Tensor]],
    pyramid: PyramidConfig,
    config: DiTLossConfig,
    num_draws: int = 1,
    max_units: int = MAX_UNITS,
    seed: int = 0,
) -> dict[str, float]:
    """Loss on held-out clips at every stage, in `NUM_BINS` parts of its path and at several units.

    Every call uses the same noise, and every part of the path as many draws as the others.

    Args:
        dit: the model.
        latents: normalised, (c t h w), all of one shape.
        texts: features of the caption of each, (embeds (n d), pooled (p)).
        pyramid: stages and units.
        config: see `DiTLossConfig`.
        num_draws: draws of path position and noise for each clip, stage, part and unit.
        max_units: units to evaluate: the first, the last, and others at equal distances.
        seed: seed of the noise.

    Returns:
        {"val_loss", "val_loss_stage0", …, "val_loss_stage0_bin0", …}: means over all elements of the latents; bin 0 is
        the noisiest.
    """
    schedule, device = Schedule(pyramid), next(dit.parameters()).device
    clips, text = _every_stage(latents, texts, pyramid, device)
    generator = torch.Generator().manual_seed(seed)
    losses: dict[str, list[Tensor]] = {}
    for unit in units_to_validate(clips.shape[2], pyramid, config, max_units):
        num_units = unit if unit is None else (unit,) * pyramid.num_stages
        for index in range(NUM_BINS * num_draws):
            number, noise = index % NUM_BINS, Noise(generator, device)
            part = number / NUM_BINS, (number + 1) / NUM_BINS
            loss, parts = dit_loss(dit, clips, text, schedule, noise, (1,) * pyramid.num_stages, num_units, part)
            figures = {"val_loss": loss} | {f"val_{name}": value for name, value in parts.items()}
            figures |= {f"val_{name}_bin{number}": value for name, value in parts.items()}
            for name, value in figures.items():
                losses.setdefault(name, []).append(value)
    return {name: float(torch.stack(values).mean()) for name, values in sorted(losses.items())}


@torch.no_grad()
def rollout_gap(
    dit: DiT,
    latents: Sequence[Tensor],
    texts: Sequence[tuple[Tensor, Tensor]],
    pyramid: PyramidConfig,
    seed: int = 0,
) -> dict[str, float]:
    """Loss of each later unit with the true history, and with the history that the model makes from the first unit.

    The first unit is given, the model samples the others one after another without guidance, and the loss of unit k is
    computed on the true unit k with both histories and the same noise. What grows from unit to unit is the error that
    the model adds to its own errors, which training on true history does not show.

    Args:
        dit, latents, texts, pyramid, seed: as in `validate_dit`.

    Returns:
        {"val_loss_unit1", "val_loss_unit1_rollout", …}, units counted from 0. The first unit with a history of its own
        making is 2. Empty for clips of fewer than three units.
    """
    device, (_, t, h, w) = next(dit.parameters()).device, latents[0].shape
    num_units = units_in(t, pyramid.frames_per_unit)
    if num_units < 3:
        return {}
    t = frames_of(num_units - 1, pyramid.frames_per_unit).stop
    true = torch.stack(list(latents)).float().to(device)[:, :, :t]
    steps = (ROLLOUT_STEPS,) * pyramid.num_stages
    sampling = Sampling(pyramid, (t, h, w), steps, steps, [1.0] * num_units)
    generators = [torch.Generator().manual_seed(seed + sample) for sample in range(len(true))]
    made = sample_video(
        dit, stack_features(list(texts)).to(device), None, sampling, Noise(generators, device), given=[true[:, :, :1]]
    ).clone()
    figures = {}
    for unit in range(1, num_units):
        start = frames_of(unit, pyramid.frames_per_unit).start
        with_made = torch.cat([made[:, :, :start], true[:, :, start:]], dim=2)
        for name, clips in (("", true), ("_rollout", with_made)):
            rows, text = _every_stage(clips, texts, pyramid, device)
            noise = Noise(torch.Generator().manual_seed(seed), device)
            stages = pyramid.num_stages
            loss, _ = dit_loss(dit, rows, text, Schedule(pyramid), noise, (1,) * stages, (unit + 1,) * stages)
            figures[f"val_loss_unit{unit}{name}"] = float(loss)
    return figures


def _every_stage(
    latents: Sequence[Tensor] | Tensor,
    texts: Sequence[tuple[Tensor, Tensor]],
    pyramid: PyramidConfig,
    device: torch.device,
) -> tuple[Tensor, TextFeatures]:
    """Clips and texts such that the column of each stage contains every clip: column c has the rows c::num_stages."""
    clips = torch.stack(list(latents)).float().to(device).repeat_interleave(pyramid.num_stages, dim=0)
    return clips, stack_features([row for row in texts for _ in range(pyramid.num_stages)]).to(device)


def units_to_validate(
    num_frames: int, pyramid: PyramidConfig, config: DiTLossConfig, max_units: int = MAX_UNITS
) -> list[int] | list[None]:
    """Units of a clip of `num_frames` latent frames that a validation covers; [None]: all frames at once."""
    if not config.autoregressive:
        return [None]
    units = units_in(num_frames, pyramid.frames_per_unit)
    count = min(units, max_units)
    return sorted({1 + round(i * (units - 1) / max(1, count - 1)) for i in range(count)})
