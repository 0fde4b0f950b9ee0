"""Measured latent normalisation."""

import torch

from pyramid_model.vae.norm import measure_latent_norm


def test_latents_normalised_by_their_own_statistics_have_zero_mean_and_unit_variance():
    latents = torch.randn(8, 2, 3, 16, 16) * torch.tensor([0.1, 5.0])[:, None, None, None] + 2
    normalised = measure_latent_norm(latents).normalise(latents)
    for frames in (normalised[:, :, :1], normalised[:, :, 1:]):
        assert frames.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
        assert (frames.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-3
