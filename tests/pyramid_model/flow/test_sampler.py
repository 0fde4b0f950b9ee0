"""Sampling of clips by a tiny transformer with random weights."""

import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.sampler import Sampling, check_size, falling_guidance, sample_units, sample_video


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled(dit, text, negative, seeds, frames=3):
    sampling = Sampling(PyramidConfig(), (frames, 8, 8), (2, 2, 2), (1, 2, 2), [3.0, 2.0, 2.0][:frames])
    return sample_video(dit, text, negative, sampling, Noise([seeded(seed) for seed in seeds]))


def test_a_seed_gives_the_same_clip_whatever_the_batch(tiny_dit, text_rows):
    text, negative = text_rows(2), text_rows(2)
    together = sampled(tiny_dit, text, negative, [5, 6])
    assert together.shape == (2, 4, 3, 8, 8)
    alone = [type(text)(t.embeds[1:], t.mask[1:], t.pooled[1:]) for t in (text, negative)]
    torch.testing.assert_close(sampled(tiny_dit, *alone, [6]), together[1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_0_and_1_need_no_negative_prompt(tiny_dit, text_rows, scale):
    size, text = ((1, 8, 8), (2, 2, 2), (2, 2, 2)), text_rows(1)
    (off,) = sample_units(tiny_dit, text, text_rows(2), Sampling(PyramidConfig(), *size, [scale]), Noise([seeded()]))
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
