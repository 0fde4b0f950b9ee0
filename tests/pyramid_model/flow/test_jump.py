"""The jump between stages and its noise."""

import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.jump import block_noise, jump
from pyramid_model.flow.schedule import Schedule


@pytest.mark.parametrize("gamma", [1 / 3, 0.3, 0.1])
def test_block_noise_has_unit_variance_and_correlation_minus_gamma(gamma):
    impulses = torch.eye(4).reshape(4, 1, 1, 2, 2)
    matrix = block_noise(impulses, gamma).reshape(4, 4)
    covariance = (1 + gamma) * torch.eye(4) - gamma * torch.ones(4, 4)
    torch.testing.assert_close(matrix.T @ matrix, covariance)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("gamma", [1 / 3, 0.2])
def test_a_jump_lands_on_the_path_of_the_next_stage(stage, gamma):
    """Signal and noise after the jump have the strengths and the covariance that the stage starts from."""
    target = Schedule(PyramidConfig(gamma=gamma)).stages[stage]
    data_only = jump(torch.full((1, 1, 1, 1, 1), 1 - target.reached), target, torch.zeros(1, 1, 1, 2, 2), gamma)
    torch.testing.assert_close(data_only, torch.full((1, 1, 1, 2, 2), 1 - target.start))
    carried = jump(torch.full((1, 1, 1, 1, 1), target.reached), target, torch.zeros(1, 1, 1, 2, 2), gamma).flatten()
    fresh = torch.stack(
        [
            jump(torch.zeros(1, 1, 1, 1, 1), target, block_noise(impulse[None], gamma), gamma).flatten()
            for impulse in torch.eye(4).reshape(4, 1, 1, 2, 2)
        ]
    )
    covariance = torch.outer(carried, carried) + fresh.T @ fresh
    torch.testing.assert_close(covariance, target.start**2 * torch.eye(4), atol=1e-6, rtol=0)
