"""The path from noise to data, cut into stages of rising resolution.

sigma is the noise fraction on the whole path, 1 = noise, 0 = data. Each stage walks its own straight path, on which
local_t falls from 1 (noisy end) to 0 (clean end). The timestep is what the model is told, 1000..0, falling from stage
to stage. Source: Pyramidal Flow Matching, arXiv:2410.05954, and the published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyramid_model.config import PyramidConfig

NUM_TIMESTEPS = 1000


@dataclass(frozen=True)
class Stage:
    """One stage of the path.

    start: sigma at the noisy end.
    end: sigma at the clean end.
    reached: sigma at which the stage below stopped; the jump from it lands on `start`.
    first_timestep, last_timestep: what the model is told at either end; the last one is the next stage's first.
    """

    start: float
    end: float
    reached: float
    first_timestep: float
    last_timestep: float

    def timesteps(self) -> Tensor:
        """The 1000 timesteps trained on, falling; float64."""
        return torch.linspace(self.first_timestep, self.last_timestep, NUM_TIMESTEPS + 1, dtype=torch.float64)[:-1]

    def sampling_timesteps(self, num_steps: int) -> Tensor:
        """Timestep told at each of `num_steps` Euler steps; float64."""
        table = self.timesteps()
        return torch.linspace(table[0].item(), table[-1].item(), num_steps, dtype=torch.float64)


class Schedule:
    """The stages of a pyramid, coarse to fine.

    Attributes:
        config: the pyramid they belong to.
        stages: one entry a resolution, stage 0 the coarsest.
    """

    def __init__(self, config: PyramidConfig):
        self.config = config
        sigmas = (NUM_TIMESTEPS - torch.arange(NUM_TIMESTEPS)) / NUM_TIMESTEPS
        sigmas = config.shift * sigmas / (1 + (config.shift - 1) * sigmas)
        timesteps = (sigmas * NUM_TIMESTEPS).tolist()
        windows = [self._window(i, [*sigmas.tolist(), 0.0]) for i in range(config.num_stages)]
        spans = [start - end for start, end, _ in windows]
        shares = [sum(spans[:i]) / sum(spans) for i in range(config.num_stages)] + [1.0]
        marks = [timesteps[min(int(share * NUM_TIMESTEPS), NUM_TIMESTEPS - 1)] for share in shares]
        self.stages = tuple(Stage(*window, marks[i], marks[i + 1]) for i, window in enumerate(windows))

    def _window(self, stage: int, sigmas: list[float]) -> tuple[float, float, float]:
        """Sigma at the noisy end, at the clean end, and where the stage below stopped."""
        low, high = (int(self.config.bounds[i] * NUM_TIMESTEPS) for i in (stage, stage + 1))
        reached, end = sigmas[low], sigmas[high]
        if stage == 0:
            return reached, end, reached
        # upsampling spreads each noise value over 2x2 pixels; the jump adds just enough fresh noise to undo that
        data = 1 - reached
        return 1 - data / (math.sqrt(1 + 1 / self.config.gamma) * reached + data), end, reached


def local_times() -> Tensor:
    """The 1000 values of local_t trained on, 1 falling to 0.001; float64."""
    return torch.linspace(1, 0, NUM_TIMESTEPS + 1, dtype=torch.float64)[:-1]


def sampling_local_times(num_steps: int) -> Tensor:
    """local_t before each of `num_steps` Euler steps, then 0: float64, num_steps + 1 values.

    As published, the last step covers only 0.001: n steps do the work of n - 1.
    """
    return torch.cat([torch.linspace(1, 0.001, num_steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


def euler_step(sample: Tensor, velocity: Tensor, local_t: float, next_local_t: float) -> Tensor:
    """Follow the velocity from local_t to next_local_t; the sum is in float32, the result in velocity's dtype."""
    return (sample.float() + (next_local_t - local_t) * velocity).to(velocity.dtype)
