"""Drift compares the ends of a clip."""

import cv2
import numpy as np
import pytest

from pyramid_model.metrics.drift import drift, saturation

NOISE = np.random.default_rng(0).integers(60, 200, (32, 48, 3), np.uint8)
STILL = np.repeat(NOISE[None], 20, axis=0)


def changed(change):
    """Twenty frames, of which the last five are changed."""
    return np.stack([change(frame) if index >= 15 else frame for index, frame in enumerate(STILL)])


def test_a_still_clip_does_not_drift():
    assert drift(STILL) == {"drift_luma": 0, "drift_saturation": 0, "drift_sharpness": 0}


def test_a_brighter_end_drifts_in_luma_alone():
    figures = drift(changed(lambda frame: frame + 20))
    assert figures["drift_luma"] == pytest.approx(20, abs=0.01)
    assert figures["drift_saturation"] == 0
    assert figures["drift_sharpness"] == pytest.approx(0, abs=1)


def test_a_blurred_end_drifts_in_sharpness_and_a_gray_one_in_saturation():
    assert drift(changed(lambda frame: cv2.GaussianBlur(frame, (5, 5), 2)))["drift_sharpness"] > 1000
    gray = drift(changed(lambda frame: np.repeat(frame.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)))
    assert gray["drift_saturation"] == pytest.approx(saturation(STILL))


def test_only_the_ends_count():
    flash = STILL.copy()
    flash[8:12] = 255
    assert drift(flash)["drift_luma"] == 0


def test_one_frame_has_no_drift():
    with pytest.raises(ValueError, match="drift of 1 frames: at least two"):
        drift(STILL[:1])
