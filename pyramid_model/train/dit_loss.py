"""Loss of the DiT: error of the velocity of units at every stage, each conditioned on the units before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import PyramidConfig
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.packed import packed_columns
from pyramid_model.flow.path import noisy_columns, units_in, units_to_train
from pyramid_model.flow.schedule import Schedule
from pyramid_model.text import TextFeatures
from pyramid_model.train.config import DiTLossConfig


def dit_loss(
    dit: nn.Module,
    latents: Tensor,
    text: TextFeatures,
    schedule: Schedule,
    noise: Noise,
    sample_ratios: tuple[int, ...],
    num_units: tuple[int, ...] | None,
    part: tuple[float, float] = (0, 1),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the velocity; every sample has the same weight.

    Args:
        dit: predicts the velocity.
        latents: normalised, (b c t h w); b a multiple of the sum of sample_ratios.
        text: b rows.
        schedule: stages of the pyramid.
        noise: source of random numbers.
        sample_ratios: columns per stage, coarse to fine.
        num_units: unit to train at each stage, counted from 1; None: all frames at once, without history.
        part: of each stage's path, see `noisy_columns`.

    Returns:
        (loss, parts): parts {"loss_stage0": …} is the loss of each stage without gradient.
    """
    batch = noisy_columns(latents, schedule, noise, sample_ratios, num_units, part)
    return _mean_error(dit(batch.columns, batch.timestep, text), batch.targets, batch.stages)


def packed_loss(
    dit: nn.Module,
    latents: Tensor,
    text: TextFeatures,
    schedule: Schedule,
    noise: Noise,
    sample_ratios: tuple[int, ...],
    units: Sequence[int],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the velocities of several units of each clip, in one call; see `flow.packed`.

    Each unit of each sample has the same weight.

    Args:
        dit: predicts the velocity; causal, with clean history time.
        units: units to train, counted from 0, in ascending order.
        latents, text, schedule, noise, sample_ratios: as in `dit_loss`.

    Returns:
        As `dit_loss`.
    """
    packed = packed_columns(latents, schedule, noise, sample_ratios, units)
    rows = [row for of_columns in zip(*packed.rows, strict=True) for row in of_columns]
    timestep = torch.stack(packed.timestep, dim=1).flatten()
    velocities = dit(packed.columns, timestep, text.rows(rows), branches=packed.branches)
    return _mean_error(velocities, packed.targets, packed.stages)


def _mean_error(
    velocities: Sequence[Tensor], targets: Sequence[Tensor], stages: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the clips, and the mean of each stage without gradient."""
    losses = [F.mse_loss(v.float(), target.float()) for v, target in zip(velocities, targets, strict=True)]
    parts = {
        f"loss_stage{stage}": torch.stack([loss for loss, s in zip(losses, stages, strict=True) if s == stage])
        for stage in sorted(set(stages))
    }
    return torch.stack(losses).mean(), {name: values.detach().mean() for name, values in parts.items()}


class DiTObjective(nn.Module):
    """A DiT with its loss in one module, so that data parallelism can wrap the whole forward pass.

    Args:
        dit: the model that is trained.
        pyramid: stages and units.
        config: see `DiTLossConfig`.
        sync_group: number of ranks that get the same clips.
        longest: latent frames of the longest clip; required if sync_group is more than 1.

    Raises:
        ValueError: the longest clip has fewer units than a sync group has ranks.
    """

    def __init__(
        self, dit: DiT, pyramid: PyramidConfig, config: DiTLossConfig, sync_group: int = 1, longest: int | None = None
    ):
        super().__init__()
        self.dit = dit
        self.schedule = Schedule(pyramid)
        self.config = config
        self.sync_group = sync_group
        self.is_packed = config.packs(dit.config)
        self.max_units = units_in(longest, pyramid.frames_per_unit) if longest else sync_group
        if self.max_units < sync_group:
            raise ValueError(
                f"sync_group {sync_group} is larger than the number of units in the longest clip, {self.max_units}: "
                "lower train_dit.sync_group"
            )

    def forward(
        self, latents: Tensor, text: TextFeatures, generator: Generator, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `dit_loss`, and `packed_loss` for a DiT with clean history time.

        Without packing, the unit to train depends on rank and step, so that over time all units are trained.
        """
        units = units_in(latents.shape[2], self.schedule.config.frames_per_unit)
        noise, ratios = Noise(generator, latents.device), self.config.ratios(self.schedule.config)
        if self.is_packed:
            order = torch.randperm(units, generator=generator)
            chosen = sorted(order[: self.config.packed_units or units].tolist())
            return packed_loss(self.dit, latents, text, self.schedule, noise, ratios, chosen)
        num_units = self._units_to_train(step, rank, units) if self.config.autoregressive else None
        return dit_loss(self.dit, latents, text, self.schedule, noise, ratios, num_units)

    def _units_to_train(self, step: int, rank: int, units: int) -> tuple[int, ...]:
        num_stages = self.schedule.config.num_stages
        if self.sync_group == 1:
            return units_to_train(step + rank, 0, 1, units, units, num_stages)
        return units_to_train(step, rank, self.sync_group, self.max_units, units, num_stages)
