"""What a training of the VAE refuses before it starts."""

import pytest

from pyramid_model.train.config import VAEBatchConfig
from tasks.running.errors import StepError
from tasks.training.train_vae import TrainVAEConfig, train_vae


@pytest.mark.parametrize(("num_frames", "message"), [(8, "takes 1 \\+ 8k frames"), (17, "clips of 9 frames")])
def test_training_cuts_must_fit_the_vae_and_the_clips(squares, num_frames, message):
    with pytest.raises(StepError, match=message):
        train_vae(squares, TrainVAEConfig(batch=VAEBatchConfig(num_frames=num_frames)))
