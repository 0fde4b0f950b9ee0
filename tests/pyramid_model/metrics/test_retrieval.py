"""Retrieval of training clips by samples."""

import numpy as np

from pyramid_model.metrics.retrieval import nearest, retrieval_rate

CLIPS = list(np.random.default_rng(0).integers(0, 256, (4, 9, 8, 8, 3), np.uint8))


def test_a_clip_with_noise_is_nearest_to_itself():
    noise = np.random.default_rng(1).normal(0, 40, CLIPS[0].shape)
    noisy = [np.clip(clip + noise, 0, 255).astype(np.uint8) for clip in CLIPS]
    assert [nearest(clip, CLIPS) for clip in noisy] == [0, 1, 2, 3]
    assert retrieval_rate(noisy, [0, 1, 2, 3], CLIPS) == 1
    assert retrieval_rate(noisy, [0, 1, 3, 2], CLIPS) == 0.5


def test_a_longer_clip_is_compared_over_the_frames_that_both_have():
    assert nearest(CLIPS[2][:5], CLIPS) == 2
