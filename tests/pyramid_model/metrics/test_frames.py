"""Scores of frames on frames whose score can be told beforehand. Milliseconds."""

import numpy as np
import pytest

from pyramid_model.metrics.frames import (
    black_ratio,
    brightness,
    exposure,
    luma,
    motion,
    sharpness,
    static_ratio,
    white_ratio,
)


def noise(seed: int = 0, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 24, 32), dtype=np.uint8)


def test_a_still_has_no_motion_and_neither_has_one_frame():
    still = np.repeat(noise()[:1], 5, axis=0)
    assert motion(still) == motion(still[:1]) == 0


def test_motion_is_the_mean_change_of_luma():
    frames = np.zeros((3, 8, 8), np.uint8)
    frames[1], frames[2] = 10, 40
    assert motion(frames) == pytest.approx((10 + 30) / 2)


def test_changes_do_not_wrap_around():
    frames = np.zeros((2, 8, 8), np.uint8)
    frames[0] = 250
    assert motion(frames) == pytest.approx(250)


def test_blur_lowers_sharpness_and_a_flat_frame_has_none():
    sharp = noise()
    blurred = ((sharp[:, :-1].astype(int) + sharp[:, 1:]) // 2).astype(np.uint8)
    assert sharpness(np.full((2, 9, 9), 77, np.uint8)) == 0
    assert sharpness(blurred) < sharpness(sharp)


def test_sharpness_of_a_single_point_is_that_of_the_stencil():
    frame = np.zeros((1, 5, 5), np.uint8)
    frame[0, 2, 2] = 1
    stencil = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    assert sharpness(frame) == pytest.approx(stencil.var())


def test_white_is_255_and_green_is_brighter_than_blue():
    assert brightness(np.full((2, 4, 4, 3), 255, np.uint8)) == pytest.approx(255, abs=1e-3)
    green, blue = np.zeros((2, 1, 4, 4, 3), np.uint8)
    green[..., 1], blue[..., 2] = 200, 200
    assert brightness(green) == pytest.approx(0.587 * 200, abs=1e-3)
    assert brightness(green) > brightness(blue)


@pytest.mark.parametrize("score", [motion, sharpness, brightness])
def test_gray_frames_and_gray_rgb_score_alike(score):
    gray = noise()
    rgb = np.repeat(gray[..., None], 3, axis=-1)
    assert score(rgb) == pytest.approx(score(gray), rel=1e-4)
    assert luma(gray).shape == luma(rgb).shape == (4, 24, 32)


HEIGHT, WIDTH = 144, 256


def test_static_ratio_counts_repeated_frames(picture, filmed):
    moving = filmed(picture, 12, right=3.0)
    assert static_ratio(moving) == 0
    assert static_ratio(np.repeat(moving, 2, axis=0)) == pytest.approx(12 / 23)
    assert static_ratio(np.repeat(moving[:1], 5, axis=0)) == 1
    assert static_ratio(moving[:1]) == 0


def test_exposure_is_the_share_of_lost_pixels_at_either_end():
    frames = np.full((3, 20, 20), 128, np.uint8)
    frames[:, :5], frames[:, -1] = 0, 255
    assert exposure(frames) == pytest.approx((0.25, 0.05))


def test_a_fade_from_black_and_a_flash_are_counted_in_frames(picture, view):
    frames = np.repeat(view(picture)[None], 20, axis=0)
    frames[:4] = frames[:4] // 20
    frames[4] = 250
    assert black_ratio(frames) == pytest.approx(4 / 20)
    assert white_ratio(frames) == pytest.approx(1 / 20)
