"""The linear predictor that a DiT has to beat: velocity by least squares from the latents at each position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import noisy_columns, units_in
from pyramid_model.flow.schedule import Schedule
from pyramid_model.text import TextFeatures

NUM_BINS = 8  # timestep bins of a stage, each with weights of its own
RIDGE = 1e-4  # added to the diagonal, as a share of its mean, so that few clips give no singular equations
NUM_DRAWS = (
    16  # draws of path position and noise for each clip and unit; fewer for clips of over MAX_VALUES / NUM_DRAWS
)
MAX_VALUES = 2**22


class LinearPredictor(nn.Module):
    """Velocity at each position as a linear function of the latents there. Called like a DiT, but reads no text.

    Inputs: the noisy latent, its mean over 3 x 3 positions, the last history frame (0 without history), and 1. Each
    stage has `NUM_BINS` timestep bins; each bin has weights of its own, with and without history.

    Args:
        schedule: stages of the pyramid.
        weights: (stages * NUM_BINS, 2, inputs, c); the second axis says whether there is history.
    """

    def __init__(self, schedule: Schedule, weights: Tensor):
        super().__init__()
        self.schedule = schedule
        self.weights = nn.Parameter(weights, requires_grad=False)

    @classmethod
    def fit(
        cls,
        latents: Sequence[Tensor],
        pyramid: PyramidConfig,
        units: Sequence[int] | None = None,
        num_draws: int = NUM_DRAWS,
        seed: int = 1,
    ) -> LinearPredictor:
        """Least squares on training clips.

        Args:
            latents: normalised, (c t h w) each, of any shapes.
            pyramid: stages and units.
            units: units to predict, each with its history, counted from 1; those that a clip does not have are left
                out. None: all frames of a clip at once, without history.
            num_draws: draws of path position and noise for each clip and unit.
            seed: seed of the draws.
        """
        schedule, noise, stages = Schedule(pyramid), Noise(Generator().manual_seed(seed)), pyramid.num_stages
        size = 3 * latents[0].shape[0] + 1
        products = torch.zeros(stages * NUM_BINS, 2, size, size, dtype=torch.float64)
        targets = torch.zeros(stages * NUM_BINS, 2, size, latents[0].shape[0], dtype=torch.float64)
        for latent in latents:
            draws = max(1, min(num_draws, MAX_VALUES // latent.numel()))
            clips = latent[None].float().repeat_interleave(stages * draws, dim=0)
            available = units_in(latent.shape[1], pyramid.frames_per_unit)
            for unit in [None] if units is None else [unit for unit in units if unit <= available]:
                batch = noisy_columns(clips, schedule, noise, (1,) * stages, None if unit is None else (unit,) * stages)
                for column, target, times in zip(
                    batch.columns, batch.targets, _per_column(batch.timestep, stages), strict=True
                ):
                    bins, history = time_bins(schedule, times), int(len(column) > 1)
                    x, y = _inputs(column).double(), target.double()
                    products[:, history].index_add_(0, bins, torch.einsum("bithw,bjthw->bij", x, x))
                    targets[:, history].index_add_(0, bins, torch.einsum("bithw,bcthw->bic", x, y))
        ridge = RIDGE * products.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
        products += ridge[..., None, None] * torch.eye(size, dtype=torch.float64)
        return cls(schedule, torch.linalg.solve(products, targets).float())

    def forward(self, columns: list[list[Tensor]], timestep: Tensor, text: TextFeatures) -> list[Tensor]:
        """Velocity of the noisy clip of each column; arguments as of `DiT.forward`."""
        velocities = []
        for column, times in zip(columns, _per_column(timestep, len(columns)), strict=True):
            weights = self.weights[time_bins(self.schedule, times), int(len(column) > 1)]
            velocities.append(torch.einsum("bithw,bic->bcthw", _inputs(column), weights))
        return velocities


def time_bins(schedule: Schedule, timesteps: Tensor) -> Tensor:
    """Bin of each timestep (b,), counted over all stages from the noisy end: stage * NUM_BINS + bin in the stage."""
    bounds = [
        stage.first_timestep + (stage.last_timestep - stage.first_timestep) * i / NUM_BINS
        for stage in schedule.stages
        for i in range(NUM_BINS)
    ]
    falling = -torch.tensor(bounds, dtype=torch.float64, device=timesteps.device)
    return (torch.bucketize(-timesteps.double(), falling, right=True) - 1).clamp_min(0)


def _per_column(timestep: Tensor, num_columns: int) -> list[Tensor]:
    """Timesteps of the samples of each column: row = sample * number of columns + column."""
    return list(timestep.unflatten(0, (-1, num_columns)).unbind(1))


def _inputs(column: Sequence[Tensor]) -> Tensor:
    """Inputs (b i t h w) at each position of the noisy clip, which is the last of a column."""
    noisy = column[-1]
    frames = noisy.transpose(1, 2).flatten(0, 1)
    mean = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    mean = mean.unflatten(0, (len(noisy), -1)).transpose(1, 2)
    history = column[-2][:, :, -1:].expand_as(noisy) if len(column) > 1 else torch.zeros_like(noisy)
    return torch.cat([noisy, mean, history, torch.ones_like(noisy[:, :1])], dim=1)
