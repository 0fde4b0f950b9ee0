"""The path from noise to data, divided into stages of rising resolution.

sigma is the noise fraction on the whole path, 1 = noise, 0 = data. Each stage has its own straight path, on which
local_t falls from 1 (noisy end) to 0 (clean end). The timestep is the model's input, 1000..0; it falls from stage to
stage. Source: Pyramidal Flow Matching, arXiv:2410.05954, and the published code.
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
    reached: sigma at the clean end of the stage below, before the jump to `start`.
    first_timestep, last_timestep: timestep at the noisy end and at the clean end. The last timestep of a stage
        is the first of the next stage.
    """

    start: float
    end: float
    reached: float
    first_timestep: float
    last_timestep: float

    def timesteps(self) -> Tensor:
        """The 1000 timesteps used in training, falling; (1000,) float64."""
        return torch.linspace(self.first_timestep, self.last_timestep, NUM_TIMESTEPS + 1, dtype=torch.float64)[:-1]

    def sampling_timesteps(self, num_steps: int) -> Tensor:
        """Timestep of each of `num_steps` Euler steps; (num_steps,) float64."""
        table = self.timesteps()
        return torch.linspace(table[0].item(), table[-1].item(), num_steps, dtype=torch.float64)


class Schedule:
    """The stages of a pyramid, coarse to fine.

    Attributes:
        config: settings of the pyramid.
        stages: one entry for each resolution; stage 0 is the coarsest.
    """

    def __init__(self, config: PyramidConfig):
        self.config = config
        sigmas = (NUM_TIMESTEPS - torch.arange(NUM_TIMESTEPS)) / NUM_TIMESTEPS
        sigmas = config.shift * sigmas / (1 + (config.shift - 1) * sigmas)
        timesteps = (sigmas * NUM_TIMESTEPS).tolist()
        windows = [self._window(i, [*sigmas.tolist(), 0.0]) for i in range(config.num_stages)]
        spans = [start - end for start, end, _ in windows]
        shares = [sum(spans[:i]) / sum(spans) for i in range(config.num_stages)] + [1.0]
        bounds = [timesteps[min(int(share * NUM_TIMESTEPS), NUM_TIMESTEPS - 1)] for share in shares]
        self.stages = tuple(Stage(*window, bounds[i], bounds[i + 1]) for i, window in enumerate(windows))

    def _window(self, stage: int, sigmas: list[float]) -> tuple[float, float, float]:
        """(start, end, reached) of a stage; see `Stage`. sigmas: 1001 values of the shifted path, from 1 to 0."""
        low, high = (int(self.config.bounds[i] * NUM_TIMESTEPS) for i in (stage, stage + 1))
        reached, end = sigmas[low], sigmas[high]
        if stage == 0:
            return reached, end, reached
        # Upsampling copies each noise value to a 2x2 block; the noise added by the jump restores the unit covariance.
        data = 1 - reached
        return 1 - data / (math.sqrt(1 + 1 / self.config.gamma) * reached + data), end, reached


def local_times() -> Tensor:
    """The 1000 values of local_t used in training, falling from 1 to 0.001; (1000,) float64."""
    return torch.linspace(1, 0, NUM_TIMESTEPS + 1, dtype=torch.float64)[:-1]


def sampling_local_times(num_steps: int) -> Tensor:
    """local_t before each of `num_steps` Euler steps, then 0; (num_steps + 1,) float64.

    As in the published code, the last step covers only 0.001, so n steps do the work of n - 1 steps.
    """
    return torch.cat([torch.linspace(1, 0.001, num_steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


def euler_step(sample: Tensor, velocity: Tensor, local_t: float, next_local_t: float) -> Tensor:
    """One Euler step from local_t to next_local_t: summed in float32, returned in velocity's dtype."""
    return (sample.float() + (next_local_t - local_t) * velocity).to(velocity.dtype)
