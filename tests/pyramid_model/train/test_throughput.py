"""Tokens and FLOPs of a training are counted from the shapes of the calls."""

import pytest
import torch

from pyramid_model.config import PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.dit.transformer import size_of
from pyramid_model.text import stack_features
from pyramid_model.train.config import DiTLossConfig, VAELossConfig
from pyramid_model.train.dit_loss import DiTObjective
from pyramid_model.train.flops import matrix_rate, train_flops
from pyramid_model.train.throughput import Throughput
from pyramid_model.train.vae_loss import VAEObjective
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.flops import decode_flops, encode_flops


def test_forward_passes_with_gradients_are_counted_until_the_next_call(tiny_dit, latents):
    _, texts = latents
    measure = Throughput(DiTObjective(tiny_dit, PyramidConfig(), DiTLossConfig()), share_batch=2, peak_flops=1e9)
    columns, text = [[torch.randn(2, 4, 1, 4, 4), torch.randn(2, 4, 1, 8, 8)]], stack_features(texts[:2])
    assert measure(1.0) == {}
    tiny_dit(columns, torch.full((2,), 500.0), text)
    with torch.no_grad():
        tiny_dit(columns, torch.full((2,), 500.0), text)
    sizes = [[size_of(clip) for clip in column] for column in columns]
    flops = train_flops(tiny_dit.config, sizes, text.embeds.shape[1], 2).total
    figures = measure(0.5)
    assert figures["tokens_per_s"] == 2 * (4 + 16) / 2 / 0.5  # of two clips, half of them on this rank
    assert figures["mfu"] == pytest.approx(flops / 2 / 0.5 / 1e9)
    assert measure(1.0) == {}


def test_the_flops_of_a_vae_are_counted_for_the_forward_and_twice_for_the_backward_pass():
    stack = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
    config = VAEConfig(latent_channels=4, encoder=stack, decoder=stack)
    objective = VAEObjective(CausalVideoVAE(config), VAELossConfig())
    measure = Throughput(objective, share_batch=1, peak_flops=1e9)
    objective(torch.zeros(2, 3, 9, 16, 24), torch.Generator())
    flops = 2 * 3 * (encode_flops(config, 9, 16, 24) + decode_flops(config, 9, 16, 24))
    assert measure(0.5) == {"mfu": pytest.approx(flops / 0.5 / 1e9)}


def test_the_rate_of_the_device_is_measured():
    assert 1e8 < matrix_rate(torch.device("cpu"), torch.float32) < 1e15
