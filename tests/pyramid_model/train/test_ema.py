"""The moving average of weights."""

import pytest
import torch
from torch import nn

from pyramid_model.train.ema import EMA


def test_ema_moves_in_bf16_models_too():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.9999)
    ema.num_updates = 10**9
    nn.init.ones_(model.weight)
    for _ in range(100):
        ema.update(model)
    assert float(ema.shadow["weight"]) == pytest.approx(1 - 0.9999**100, rel=1e-3)


def test_swapping_twice_gives_the_trained_weights_back_exactly(tiny_vae):
    before = [weight.clone() for weight in tiny_vae.parameters()]
    ema = EMA(tiny_vae, 0.5)
    with torch.no_grad():
        for weight in tiny_vae.parameters():
            weight.add_(0.1)
    trained = [weight.clone() for weight in tiny_vae.parameters()]
    ema.swap(tiny_vae)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_vae.parameters(), strict=True))
    ema.swap(tiny_vae)
    assert all(torch.equal(a, b) for a, b in zip(trained, tiny_vae.parameters(), strict=True))
