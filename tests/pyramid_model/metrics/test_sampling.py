"""Sampling of frames for models."""

import numpy as np

from pyramid_model.metrics.sampling import spread_frames


def test_frames_come_from_the_middles_of_equal_parts_and_keep_the_aspect(tmp_path, shoot):
    frames = shoot(tmp_path / "film.mp4", [24], size=(96, 160), fps=24)
    clip = {"height": 96, "width": 160, "num_frames": 24, "fps": 24.0}
    spread = spread_frames(str(tmp_path / "film.mp4"), **clip, num_wanted=4, shorter_side=1000)
    assert spread.shape == (4, 96, 160, 3)
    for sampled, index in zip(spread, (3, 9, 15, 21), strict=True):
        nearest = np.abs(frames.astype(int) - sampled).mean(axis=(1, 2, 3)).argmin()
        assert abs(nearest - index) <= 1
    assert spread_frames(str(tmp_path / "film.mp4"), **clip, num_wanted=99, shorter_side=48).shape == (24, 48, 80, 3)
