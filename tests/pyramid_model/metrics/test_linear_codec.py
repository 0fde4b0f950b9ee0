"""The linear codec is the best linear map of its rate on the clips it is fitted to."""

import numpy as np
import pytest

from pyramid_model.config import VAEConfig
from pyramid_model.metrics.linear_codec import LinearCodec
from pyramid_model.metrics.quality import psnr

VAE = VAEConfig(latent_channels=16)


def noise(seed: int, num_frames: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 32, 32, 3), np.uint8)


def test_clips_of_fewer_patterns_than_latents_are_restored_exactly():
    patterns = noise(0, 17).astype(float)
    mixed = [patterns * share + 255 * (1 - share) * 0.5 for share in (0.2, 0.5, 0.9)]
    clips = [np.tile(clip[:, :8, :8], (1, 4, 4, 1)).round().astype(np.uint8) for clip in mixed]
    codec = LinearCodec.fit(clips, VAE)
    assert min(psnr(clip, codec.restore(clip)) for clip in clips) > 45


def test_it_keeps_the_share_of_the_variance_that_its_components_hold():
    """White noise has the same variance along every axis: 16 of 192 for the first frame, 16 of 1536 after it."""
    clips = [noise(seed) for seed in range(30)]
    codec = LinearCodec.fit(clips, VAE)
    held_out = noise(99)
    error = np.square(held_out.astype(float) - codec.restore(held_out))
    assert error[1:].mean() == pytest.approx((256**2 - 1) / 12 * (1 - 16 / 1536), rel=0.05)
    assert error[0].mean() == pytest.approx((256**2 - 1) / 12 * (1 - 16 / 192), rel=0.1)


def test_frames_that_fill_no_block_are_left_out():
    clips = [noise(seed, 12) for seed in range(4)]
    codec = LinearCodec.fit(clips, VAE)
    assert codec.validate(clips)["val_psnr"] == codec.validate([clip[:9] for clip in clips])["val_psnr"]


def test_clips_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="at least 9 frames"):
        LinearCodec.fit([noise(0, 5)], VAE)
