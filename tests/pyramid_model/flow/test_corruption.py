"""Corruption of the history: noise as published, blur and contrast as options."""

import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.corruption import Corruption
from pyramid_model.flow.noise import Noise

CLIP = torch.randn(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def corrupted(clip=CLIP, seed=0, **settings):
    noise = Noise(torch.Generator().manual_seed(seed))
    corruption = Corruption.draw(noise, clip, PyramidConfig(**settings))
    return corruption, corruption.apply(clip, noise)


def test_without_any_corruption_the_history_is_as_it_was():
    assert torch.equal(corrupted(corrupt_ratio=0)[1], CLIP)


def test_options_that_are_off_draw_no_numbers():
    noise = Noise(torch.Generator().manual_seed(0))
    sigma = noise.uniform(3)[:, None, None, None, None] / 3
    expected = sigma * noise.normal(*CLIP.shape) + (1 - sigma) * CLIP
    torch.testing.assert_close(corrupted()[1], expected)


def test_blur_takes_detail_and_keeps_a_flat_picture():
    _, blurred = corrupted(corrupt_ratio=0, corrupt_blur=1)
    detail = [(clip[..., 1:] - clip[..., :-1]).square().mean(dim=(1, 2, 3, 4)) for clip in (CLIP, blurred)]
    assert (detail[1] < detail[0]).all()
    flat = torch.ones_like(CLIP)
    torch.testing.assert_close(corrupted(flat, corrupt_ratio=0, corrupt_blur=1)[1], flat)


def test_contrast_scales_each_channel_around_its_mean_both_ways():
    clip = CLIP[:1].expand(64, -1, -1, -1, -1)
    corruption, changed = corrupted(clip, corrupt_ratio=0, corrupt_contrast=0.5)
    torch.testing.assert_close(changed.mean(dim=(3, 4)), clip.mean(dim=(3, 4)))
    ratio = changed.std(dim=(3, 4)) / clip.std(dim=(3, 4))
    torch.testing.assert_close(ratio, corruption.contrast[..., 0, 0].expand_as(ratio))
    assert 0.5 <= float(ratio.min()) < 0.6
    assert 1.4 < float(ratio.max()) <= 1.5


@pytest.mark.parametrize("settings", [{"corrupt_blur": 1.5}, {"corrupt_contrast": 1.0}, {"corrupt_blur": -0.1}])
def test_impossible_strengths_are_refused(settings):
    with pytest.raises(ValueError, match="should be"):
        PyramidConfig(**settings)
