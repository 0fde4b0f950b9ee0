"""Training examples on the path of each stage."""

import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.history import latent_pyramid
from pyramid_model.flow.jump import downsample, upsample
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import noise_pyramid, noisy_columns, stage_endpoints, units_to_train
from pyramid_model.flow.schedule import Schedule, Stage


@pytest.fixture
def schedule():
    return Schedule(PyramidConfig())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("start", "end", "expected"), [(1.0, 1.0, "noise"), (0.0, 0.0, "data")])
def test_end_points_are_pure_noise_or_pure_data_at_the_extremes(start, end, expected):
    fine, noise = torch.randn(2, 1, 3, 1, 4, 4)
    coarse = downsample(fine)
    at_start, at_end = stage_endpoints(fine, coarse, noise, Stage(start, end, start, 1000, 0))
    torch.testing.assert_close(at_end, noise if expected == "noise" else fine)
    torch.testing.assert_close(at_start, noise if expected == "noise" else upsample(coarse))


def test_noise_has_unit_variance_at_every_stage():
    for level in noise_pyramid(torch.randn(4, 4, 4, 32, 32, generator=seeded()), 3):
        assert level.std() == pytest.approx(1, abs=0.05)


def test_following_the_true_velocity_from_any_point_of_the_path_reaches_its_clean_end(schedule):
    latents = torch.randn(4, 2, 3, 16, 16, generator=seeded(1))
    batch = noisy_columns(latents, schedule, Noise(seeded(2)), (1, 2, 1), num_units=(3, 3, 3))
    again = noisy_columns(latents, schedule, Noise(seeded(2)), (1, 2, 1), num_units=None)
    for g, stage in enumerate(batch.stages):
        t = batch.local_t[g][:, None, None, None, None]
        end = batch.columns[g][-1] - t * batch.targets[g]
        clean = latent_pyramid(latents, 3)[stage][g::4, :, 2:]
        sigma = schedule.stages[stage].end
        residual = (end - (1 - sigma) * clean) / max(sigma, 1e-6)
        assert residual.std() == pytest.approx(1, abs=0.25) if sigma else residual.abs().max() < 1
    assert [len(clips) for clips in again.columns] == [1, 1, 1, 1]
    assert again.columns[0][0].shape[2] == 3


def test_without_corruption_history_is_clean():
    schedule = Schedule(PyramidConfig(corrupt_ratio=0))
    latents = torch.randn(1, 2, 3, 8, 8)
    batch = noisy_columns(latents, schedule, Noise(seeded()), (0, 0, 1), num_units=(1, 1, 3))
    torch.testing.assert_close(batch.columns[0][1], latents[:, :, 1:2])


def test_the_ranks_of_a_sync_group_train_every_unit_between_them():
    calls = [
        units_to_train(call, rank, sync_group=4, max_units=8, available_units=8) for call in (1, 2) for rank in range(4)
    ]
    assert sorted(units[-1] for units in calls) == list(range(1, 9))
    assert all(units[0] == units[1] == 9 - units[2] for units in calls)


def test_a_batch_that_does_not_divide_into_columns_is_refused(schedule):
    with pytest.raises(ValueError, match="multiple of 4"):
        noisy_columns(torch.zeros(3, 1, 1, 8, 8), schedule, Noise(seeded()), (1, 2, 1))
    with pytest.raises(ValueError, match="each of the 3 stages"):
        noisy_columns(torch.zeros(3, 1, 1, 8, 8), schedule, Noise(seeded()), (1, 2))
