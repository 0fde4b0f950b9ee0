"""Configs that contradict themselves are refused; latent normalisation."""

import pytest
import torch
from pydantic import Field

from pyramid_model.config import (
    MINIFLUX_LATENT_NORM,
    NOT_IDENTITY,
    SD3_LATENT_NORM,
    Config,
    LatentNorm,
    MiniFluxConfig,
    MMDiTConfig,
    VAEConfig,
    VAEStackConfig,
    identity,
)
from pyramid_model.vae.autoencoder import CausalVideoVAE


def test_a_setting_with_further_marks_is_left_out_of_the_identity_too():
    class Marked(Config):
        steps: int = Field(default=1, json_schema_extra={"unit": "steps"})
        threads: int = Field(default=1, json_schema_extra=NOT_IDENTITY | {"unit": "threads"})

    assert identity(Marked()) == {"steps": 1}


def test_head_sizes_without_pairs_are_refused():
    with pytest.raises(ValueError, match="must be even"):
        MMDiTConfig(head_dim=7, num_heads=4)


def test_rope_axes_that_do_not_fill_a_head_are_refused():
    with pytest.raises(ValueError, match="add up to head_dim 64"):
        MiniFluxConfig(rope_axes=(16, 16, 16))


def test_latent_norm_treats_the_first_frame_apart_and_inverts():
    norm = LatentNorm(first_shift=1.0, first_scale=2.0, rest_shift=(0.0, 3.0), rest_scale=(1.0, 0.5))
    latents = torch.randn(2, 2, 3, 2, 2)
    before = latents.clone()
    normalised = norm.normalise(latents)
    torch.testing.assert_close(normalised[:, :, 0], (latents[:, :, 0] - 1) * 2)
    torch.testing.assert_close(normalised[:, 1, 1:], (latents[:, 1, 1:] - 3) * 0.5)
    torch.testing.assert_close(norm.denormalise(normalised), latents)
    assert torch.equal(latents, before)


@pytest.mark.parametrize("norm", [MINIFLUX_LATENT_NORM, SD3_LATENT_NORM])
def test_normalising_in_bfloat16_rounds_the_result_and_not_the_statistics(norm):
    latents = torch.randn(1, 2, 3, 4, 4).bfloat16()
    assert torch.equal(norm.normalise(latents), norm.normalise(latents.float()).bfloat16())
    assert torch.equal(norm.denormalise(latents), norm.denormalise(latents.float()).bfloat16())


def test_a_config_whose_halves_do_not_match_is_refused():
    stack = VAEStackConfig(
        channels=(4, 4), layers=(1, 1), norm_groups=2, resample_space=(True, True), resample_time=(True, False)
    )
    other = VAEStackConfig(
        channels=(4, 4), layers=(1, 1), norm_groups=2, resample_space=(True, False), resample_time=(True, False)
    )
    with pytest.raises(ValueError, match="halves 2 times but the decoder doubles 1"):
        VAEConfig(encoder=stack, decoder=other)
    with pytest.raises(ValueError, match="norm_groups 3 does not divide"):
        VAEStackConfig(channels=(4,), layers=(1,), norm_groups=3, resample_space=(True,), resample_time=(True,))


def test_a_block_without_layers_only_resamples_and_cannot_change_channels():
    encoder = VAEStackConfig(channels=(4, 4, 8, 8), layers=(0, 1, 1, 1), norm_groups=2)
    decoder = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 0), norm_groups=2)
    vae = CausalVideoVAE(VAEConfig(latent_channels=4, encoder=encoder, decoder=decoder))
    frames = torch.zeros(1, 3, 9, 16, 16)
    assert vae.decode(vae.encode(frames).mean).shape == frames.shape
    with pytest.raises(ValueError, match="decoder block 2 has no layers to go from 8 to 4 channels"):
        VAEConfig(latent_channels=4, encoder=encoder, decoder=encoder.model_copy(update={"layers": (1, 1, 0, 1)}))
