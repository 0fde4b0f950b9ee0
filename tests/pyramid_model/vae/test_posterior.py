"""The posterior over latents."""

import torch

from pyramid_model.vae.posterior import Posterior


def test_a_seed_gives_the_same_posterior_sample():
    posterior = Posterior(torch.zeros(1, 2, 1, 2, 2), torch.zeros(1, 2, 1, 2, 2))
    a, b = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert posterior.kl().abs().max() == 0
