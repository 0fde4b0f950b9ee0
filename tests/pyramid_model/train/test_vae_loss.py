"""The plain loss of the VAE and its validation."""

import numpy as np
import pytest

from pyramid_model.metrics.quality import psnr
from pyramid_model.train.batches import step_generator, vae_batch
from pyramid_model.train.config import VAELossConfig
from pyramid_model.train.vae_loss import reconstruct, vae_loss, validate_vae


def test_vae_loss_is_the_weighted_sum_of_its_parts(tiny_vae, clips):
    frames = vae_batch(clips, [0], 9, step_generator(0, 0))
    config = VAELossConfig(mse_weight=2, l1_weight=3, kl_weight=0.5)
    loss, parts = vae_loss(tiny_vae, frames, config, step_generator(0, 1))
    assert float(loss.detach()) == pytest.approx(
        float(2 * parts["mse"] + 3 * parts["l1"] + 0.5 * parts["kl"]), rel=1e-5
    )


def test_validation_of_a_vae_counts_every_clip_the_same(tiny_vae, clips):
    cut = [clip[:9] for clip in clips]
    figures = validate_vae(tiny_vae, cut)
    assert figures["val_psnr"] == pytest.approx(np.mean([psnr(c, reconstruct(tiny_vae, c)) for c in cut]))
