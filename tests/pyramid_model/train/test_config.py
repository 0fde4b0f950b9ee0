"""Settings of training."""

import pytest

from pyramid_model.train.config import OptimConfig, VAEBatchConfig


def test_first_steps_may_see_still_frames_only():
    config = VAEBatchConfig(num_frames=9, image_steps=2, image_batch_size=16)
    assert [config.at(step, batch_size=3) for step in range(4)] == [(16, 1), (16, 1), (3, 9), (3, 9)]


def test_warmup_must_end_before_training_does():
    with pytest.raises(ValueError, match="warmup_steps 5 must be less than num_steps 5"):
        OptimConfig(num_steps=5, warmup_steps=5)
