"""Measures that tell dissolves from other changes. Whole dissolves and fades are among the facts about shots."""

import numpy as np
import pytest

from pyramid_model.shots.gradual import contrast, is_local, mean_product, structure_correlation


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(128, 40, (18, 32)).astype(np.float32)


def test_the_mean_product_of_a_mixture_is_the_mixture_of_mean_products():
    a, b, c = (picture(seed) for seed in range(3))
    mixed = mean_product(0.25 * a + 0.75 * b, c)
    assert mixed == pytest.approx(0.25 * mean_product(a, c) + 0.75 * mean_product(b, c), rel=1e-5)


def test_a_change_of_a_third_of_the_picture_is_local_and_one_of_all_of_it_is_not():
    change = np.zeros((18, 32), np.float32)
    change[:6] = 50
    assert is_local(change)
    assert not is_local(picture(0) - picture(1))


def test_a_change_of_light_keeps_the_structure_and_another_picture_has_another():
    scene = picture(0)
    assert structure_correlation(scene, 0.7 * scene + 20) > 0.9
    assert abs(structure_correlation(scene, picture(1))) < 0.2


def test_an_empty_picture_has_no_contrast():
    assert contrast(np.full((18, 32), 7, np.uint8)) == 0
