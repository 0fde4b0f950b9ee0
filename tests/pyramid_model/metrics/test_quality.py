"""Figures of merit of videos (a second in all)."""

import math

import numpy as np
import pytest

from pyramid_model.metrics.quality import motion_magnitude, psnr, ssim, temporal_flicker


@pytest.fixture
def video():
    """Smooth texture that slides 2 px to the right a frame, (6 32 48 3)."""
    y, x = np.mgrid[0:32, 0:64]
    wave = 127 + 60 * np.sin(x / 5) * np.cos(y / 4) + 40 * np.sin((x + y) / 7)
    texture = np.repeat(wave[..., None], 3, axis=-1).astype(np.uint8)
    return np.stack([texture[:, 16 - 2 * t : 64 - 2 * t] for t in range(6)])


def test_equal_videos_are_perfect(video):
    assert psnr(video, video) == math.inf
    assert ssim(video, video) == pytest.approx(1)


def test_an_offset_of_one_level_is_48_db(video):
    assert psnr(video, video + 1) == pytest.approx(20 * math.log10(255))


def test_noise_costs_similarity_and_a_change_of_brightness_costs_little(video):
    noise = np.random.default_rng(0).normal(0, 25, video.shape)
    noisy = np.clip(video + noise, 0, 255).astype(np.uint8)
    assert ssim(video, noisy) < 0.8 < ssim(video, video + 5)


def test_ssim_of_a_plain_pair_is_the_luminance_term():
    dark, bright = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    constant = (0.01 * 255) ** 2
    assert ssim(dark, bright) == pytest.approx((2 * 100 * 150 + constant) / (100**2 + 150**2 + constant))


def test_motion_is_measured_in_pixels_a_frame(video):
    assert motion_magnitude(video) == pytest.approx(2, abs=0.4)


def test_a_still_video_neither_moves_nor_flickers(video):
    still = np.repeat(video[:1], 4, axis=0)
    assert motion_magnitude(still) == pytest.approx(0, abs=0.01)
    assert temporal_flicker(still) == 0
    assert temporal_flicker(video[:1]) == motion_magnitude(video[:1]) == 0


def test_flicker_is_the_mean_change_of_neighbours():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    frames[1] = 10
    assert temporal_flicker(frames) == 10


def test_videos_of_different_shapes_are_refused(video):
    with pytest.raises(ValueError, match=r"\(5, 32, 48, 3\)"):
        psnr(video, video[:5])
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(video[:, :8], video[:, :8])
