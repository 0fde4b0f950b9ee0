"""The share of a picture that text covers."""

import cv2
import numpy as np
import pytest

from pyramid_model.metrics.text_area import TextFinder, covered_area
from tasks.models.score_models import packaged_weights


def scene(seed: int, num_frames: int = 2, height: int = 180, width: int = 320) -> np.ndarray:
    """A blurred texture, (t h w 3) uint8, the same in every frame."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)] * num_frames)


@pytest.fixture(scope="module")
def finder():
    return TextFinder(*(packaged_weights("rapidocr", f"*_{part}_*.onnx") for part in ("det", "rec")))


def test_writing_is_found_where_it_is_and_nowhere_else(finder):
    plain, titled, subtitled = scene(1, 1), scene(1, 1), scene(1, 1)
    cv2.putText(titled[0], "LATEST NEWS", (10, 110), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255, 255, 255), 4)
    cv2.putText(subtitled[0], "good evening", (90, 170), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
    (none,), (large,), (small,) = finder([plain, titled, subtitled])
    assert none == 0
    assert 0.01 < small < 0.06
    assert 0.1 < large < 0.4


def test_overlapping_boxes_count_once():
    left, middle = (np.array([[x, 0], [x + 49, 0], [x + 49, 99], [x, 99]]) for x in (0, 25))
    assert covered_area([left], 100, 100) == pytest.approx(0.5)
    assert covered_area([left, middle, left], 100, 100) == pytest.approx(0.75)
    assert covered_area([], 100, 100) == 0
