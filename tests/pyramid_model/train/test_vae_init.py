"""Initial weights of a VAE."""

import torch

from pyramid_model.config import VAEConfig, VAEStackConfig
from pyramid_model.train.batches import step_generator, vae_batch
from pyramid_model.train.vae_init import initialise_vae
from pyramid_model.vae.autoencoder import CausalVideoVAE


def test_a_fresh_vae_tells_plain_frames_of_different_brightness_apart():
    """Group norm alone makes them nearly alike; the constant channels of `initialise_vae` keep them apart."""
    stack = VAEStackConfig(channels=(16,) * 4, layers=(1,) * 4, norm_groups=2)
    torch.manual_seed(0)
    vae = CausalVideoVAE(VAEConfig(latent_channels=4, encoder=stack, decoder=stack)).eval()
    dark, bright = (torch.full((1, 3, 9, 32, 48), level) for level in (0.3, 0.6))

    @torch.no_grad()
    def contrast() -> float:
        restored = [vae.decode(vae.encode(frames).mode()) for frames in (dark, bright)]
        return float((restored[0] - restored[1]).abs().mean())

    random = contrast()
    initialise_vae(vae, step_generator(0, 0))
    assert random < 0.02
    assert contrast() > 0.1


def test_a_fresh_vae_looks_at_one_frame_at_a_time(tiny_vae, clips):
    initialise_vae(tiny_vae, step_generator(0, 0))
    changed = clips[0].copy()
    changed[:8] = 0
    latent, other = (
        tiny_vae.encode(vae_batch([clip], [0], 9, step_generator(0, 0))).mode() for clip in (clips[0][:9], changed[:9])
    )
    torch.testing.assert_close(latent[:, :, 1], other[:, :, 1])
