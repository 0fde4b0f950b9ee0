"""A VAE starts as a linear codec that is fitted to clips."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyramid_model.config import VAEConfig, VAEStackConfig
from pyramid_model.metrics.linear_codec import LinearCodec
from pyramid_model.train.batches import step_generator
from pyramid_model.train.vae_init import Pairs, initialise_vae
from pyramid_model.train.vae_loss import validate_vae
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.conv import CausalConv3d, Chunk, FrameGroupNorm
from pyramid_model.vae.pixels import to_unit_range


def new_vae(channels: tuple[int, ...] = (16, 16, 32, 32), norm_groups: int = 2, latents: int = 8) -> CausalVideoVAE:
    stack = VAEStackConfig(channels=channels, layers=(1,) * 4, norm_groups=norm_groups)
    torch.manual_seed(0)
    return CausalVideoVAE(VAEConfig(latent_channels=latents, encoder=stack, decoder=stack)).eval()


def waves(seed: int) -> np.ndarray:
    """A clip (17 48 64 3) of four coloured waves that move."""
    random = np.random.default_rng(seed)
    t, y, x = np.meshgrid(np.arange(17), np.arange(48), np.arange(64), indexing="ij")
    pixels = np.zeros((17, 48, 64, 3))
    for _ in range(4):
        speed, along, across, phase = random.normal(size=4) * (0.15, 0.12, 0.12, 3)
        pixels += np.cos(speed * t + along * y + across * x + phase)[..., None] * random.uniform(5, 30, 3)
    return (pixels + 128).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted() -> CausalVideoVAE:
    vae = new_vae()
    initialise_vae(vae, torch.stack([to_unit_range(waves(seed)) for seed in range(12)]), step_generator(0, 0))
    return vae


def test_it_restores_clips_it_has_not_seen_about_as_well_as_the_linear_codec_of_its_rate(fitted):
    held_out = [waves(seed) for seed in range(100, 104)]
    codec = LinearCodec.fit([waves(seed) for seed in range(12)], fitted.config)
    linear = codec.validate(held_out)["val_psnr"]
    assert validate_vae(new_vae(), held_out)["val_psnr"] < linear - 8  # with random weights
    assert validate_vae(fitted, held_out)["val_psnr"] > linear - 1


def test_latents_start_with_mean_squares_of_one_and_without_correlation(fitted):
    frames = torch.stack([to_unit_range(waves(seed)) for seed in range(12)])
    with torch.no_grad():
        frames = torch.cat([frames, frames.flip(-1), frames.flip(-2), frames.flip(-1, -2)])
        latents = fitted.encode(frames).mode().transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents @ latents.T / latents.shape[1], torch.eye(8), atol=0.1, rtol=0)


def test_norm_and_activation_pass_the_values_of_pairs_unchanged():
    norm, conv = FrameGroupNorm(2, 16), CausalConv3d(16, 3)
    pairs = Pairs.plan(3, 16, norm)
    values = torch.randn(2, 3, 4, 8, 8, generator=step_generator(0, 0))
    x = torch.zeros(2, 16, 4, 8, 8)
    for value, (plus, minus) in enumerate(pairs.channels):
        x[:, plus], x[:, minus] = values[:, value], -values[:, value]
    for number, channel in enumerate(pairs.constants):
        x[:, channel] = 8 if number % 2 else -8
    with torch.no_grad():
        pairs.read(norm, conv, x)
        torch.testing.assert_close(conv(F.silu(norm(x)), Chunk()), values, rtol=0.02, atol=0.01)


def test_a_narrow_vae_starts_with_the_values_that_its_channels_hold():
    vae = new_vae(channels=(8, 8, 8, 8), norm_groups=4, latents=16)
    initialise_vae(vae, torch.stack([to_unit_range(waves(seed)) for seed in range(4)]), step_generator(0, 0))
    with torch.no_grad():
        latents = vae.encode(to_unit_range(waves(9))[None]).mode()
    used = latents.abs().amax(dim=(0, 2, 3, 4)) > 0
    assert used.tolist() == [True] * 4 + [False] * 12
    assert all(parameter.isfinite().all() for parameter in vae.parameters())


def test_clips_without_any_difference_give_finite_weights():
    vae = new_vae()
    initialise_vae(vae, torch.full((2, 3, 9, 32, 32), 0.5), step_generator(0, 0))
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
