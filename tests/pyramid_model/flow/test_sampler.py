"""Facts about the pyramid's schedule, paths, jumps, history and sampling. Runs in about 4 s."""

import itertools

import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.jump import block_noise, downsample, jump, upsample
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import noise_pyramid, noisy_columns, stage_endpoints, units_to_train
from pyramid_model.flow.sampler import Sampling, check_size, falling_guidance, sample_units, sample_video
from pyramid_model.flow.schedule import Schedule, Stage


@pytest.fixture
def schedule():
    return Schedule(PyramidConfig())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_stage_is_told_where_the_one_below_stopped(schedule):
    ends = [(stage.first_timestep, stage.last_timestep) for stage in schedule.stages]
    assert ends[0][0] == 1000
    assert all(low[1] == high[0] for low, high in itertools.pairwise(ends))
    assert [stage.start for stage in schedule.stages] == pytest.approx([1.0, 0.8002399, 0.5007496])
    assert [stage.end for stage in schedule.stages] == pytest.approx([0.667, 0.334, 0.0])


def test_a_larger_shift_spends_more_of_the_path_at_high_noise(schedule):
    shifted = Schedule(PyramidConfig(shift=3.0))
    assert shifted.stages[0].end > schedule.stages[0].end


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


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("frames_per_unit", [1, 2])
@pytest.mark.parametrize("num_units", [1, 2, 3, 6])
def test_history_holds_every_frame_once_and_gets_coarser_with_age(stage, frames_per_unit, num_units):
    num_frames = 1 + (num_units - 1) * frames_per_unit
    marked = torch.arange(num_frames).float()[None, None, :, None, None].expand(1, 1, num_frames, 16, 16)
    clips = history_clips(latent_pyramid(marked, 3), stage, num_units, frames_per_unit)
    assert torch.cat([clip[0, 0, :, 0, 0] for clip in clips]).tolist() == list(range(num_frames))
    sides = [clip.shape[-1] for clip in clips]
    assert sides == sorted(sides)
    assert sides[-1] == 4 * 2**stage


def test_three_stages_keep_the_last_unit_sharp_the_one_before_at_half_and_the_rest_at_a_quarter():
    clips = history_clips(latent_pyramid(torch.zeros(1, 1, 5, 16, 16), 3), stage=2, num_units=5, frames_per_unit=1)
    assert [tuple(clip.shape[2:]) for clip in clips] == [(3, 4, 4), (1, 8, 8), (1, 16, 16)]


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


def sampled(dit, text, negative, seeds, frames=3):
    sampling = Sampling(PyramidConfig(), (frames, 8, 8), (2, 2, 2), (1, 2, 2), [3.0, 2.0, 2.0][:frames])
    return sample_video(dit, text, negative, sampling, Noise([seeded(seed) for seed in seeds]))


def test_a_seed_gives_the_same_clip_whatever_the_batch(tiny_dit, text_rows):
    text, negative = text_rows(2), text_rows(2)
    together = sampled(tiny_dit, text, negative, [5, 6])
    assert together.shape == (2, 4, 3, 8, 8)
    alone = [type(text)(t.embeds[1:], t.mask[1:], t.pooled[1:]) for t in (text, negative)]
    torch.testing.assert_close(sampled(tiny_dit, *alone, [6]), together[1:], atol=1e-4, rtol=1e-4)


def test_guidance_1_needs_no_negative_prompt(tiny_dit, text_rows):
    size, text = ((1, 8, 8), (2, 2, 2), (2, 2, 2)), text_rows(1)
    (off,) = sample_units(tiny_dit, text, text_rows(2), Sampling(PyramidConfig(), *size, [1.0]), Noise([seeded()]))
    (absent,) = sample_units(tiny_dit, text, None, Sampling(PyramidConfig(), *size, [4.0]), Noise([seeded()]))
    assert torch.equal(off, absent)


def test_units_arrive_one_by_one(tiny_dit, text_rows):
    sampling = Sampling(PyramidConfig(frames_per_unit=2), (5, 8, 8), (1, 1, 1), (1, 1, 1), [1.0, 1.0, 1.0])
    units = sample_units(tiny_dit, text_rows(1), None, sampling, Noise([seeded()]))
    assert [unit.shape[2] for unit in units] == [1, 2, 2]


def test_frames_sampled_at_once_see_no_history_and_an_image_comes_out_the_same(dit, text_rows):
    text, negative = text_rows(1), text_rows(1)

    def clip(frames: int, at_once: bool):
        sampling = Sampling(PyramidConfig(), (frames, 8, 8), (2, 1, 2), (1, 1, 1), [3.0], at_once)
        return sample_video(dit, text, negative, sampling, Noise([seeded()]))

    assert clip(3, at_once=True).shape == (1, 4, 3, 8, 8)
    torch.testing.assert_close(clip(1, at_once=True), clip(1, at_once=False))


@pytest.mark.parametrize(("size", "message"), [((1, 12, 16), "multiples of 8 latents"), ((2, 8, 8), "frames_per_unit")])
def test_a_size_that_does_not_fit_the_pyramid_is_refused(size, message):
    with pytest.raises(ValueError, match=message):
        check_size(size, PyramidConfig(frames_per_unit=2))


def test_falling_guidance_stops_at_the_least():
    assert falling_guidance(7.0, 0.5, 6.2, 4) == [7.0, 6.5, 6.2, 6.2]
