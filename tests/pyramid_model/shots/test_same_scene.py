"""Whether two frames show the same scene."""

import numpy as np

from pyramid_model.shots.same_scene import SAME, UNRELATED, colour_change, is_lit_or_darkened, motion_correlation


def smooth_noise(seed: int) -> np.ndarray:
    """A picture with structure of some pixels, gray uint8 (96 128)."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 255, (12, 16), dtype=np.uint8)
    return cv2.resize(noise, (128, 96), interpolation=cv2.INTER_CUBIC)


def test_a_moved_picture_is_the_same_scene_and_another_picture_is_not():
    scene = smooth_noise(0)
    assert motion_correlation(scene, np.roll(scene, 3, axis=1)) > SAME
    assert motion_correlation(scene, smooth_noise(1)) < UNRELATED


def test_brightness_and_contrast_do_not_change_the_correlation():
    scene = smooth_noise(0)
    assert motion_correlation(scene, (scene * 0.6 + 40).astype(np.uint8)) > SAME


def test_an_empty_frame_resembles_nothing():
    assert motion_correlation(smooth_noise(0), np.full((96, 128), 90, np.uint8)) == 0


def test_light_brightens_everything_and_another_picture_does_not():
    scene = (smooth_noise(0) // 2).astype(np.uint8)
    assert is_lit_or_darkened(scene, scene + 60)
    assert is_lit_or_darkened(scene + 60, scene)
    assert not is_lit_or_darkened(scene, scene)
    assert not is_lit_or_darkened(scene, smooth_noise(1) // 2)


def test_the_change_of_a_pixel_is_that_of_its_most_changed_channel():
    before = np.zeros((4, 4, 3), np.uint8)
    after = before.copy()
    after[..., 1], after[..., 2] = 9, 30
    assert colour_change(before, after) == 30
