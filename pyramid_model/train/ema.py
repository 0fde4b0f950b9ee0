"""Exponential moving average of a model's weights, in float32 for models of any dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


def trained_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and weights of all parameters that are not frozen."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


class EMA:
    """Averaged copy of a model's weights that are trained.

    Float32, because in bfloat16 an increment of (1 - decay) would be rounded to 0 and the average would not change.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.shadow = {name: weight.detach().float().clone() for name, weight in trained_weights(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights: faster in early steps, to forget the initial weights."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (self.num_updates + 10))
        for name, weight in trained_weights(model):
            self.shadow[name].lerp_(weight.detach().float(), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the averaged weights; a second call exchanges them back."""
        for name, weight in trained_weights(model):
            trained = weight.detach().float().clone()
            weight.copy_(self.shadow[name])
            self.shadow[name] = trained
