"""The discriminator of VAE training."""

import torch

from pyramid_model.vae.discriminator import PatchDiscriminator


@torch.no_grad()
def test_there_is_one_logit_for_each_patch_and_a_frame_of_48_px_is_the_smallest():
    discriminator = PatchDiscriminator(num_layers=4, channels=2)
    assert discriminator(torch.zeros(2, 3, 48, 64)).shape == (2, 1, 1, 2)
    assert discriminator(torch.zeros(1, 3, 96, 96)).shape == (1, 1, 4, 4)
