"""Exponential moving average of a model's weights, in float32 whatever the model's own type."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Averaged copy of a model's weights.

    In bf16 an increment of (1 - decay) would be rounded away and the average would never move; hence float32.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.shadow = {name: weight.detach().float().clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights; early on faster, so that it forgets the random start."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (self.num_updates + 10))
        for name, weight in model.named_parameters():
            self.shadow[name].lerp_(weight.detach().float(), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the averaged ones; a second call exchanges them back."""
        for name, weight in model.named_parameters():
            trained = weight.detach().float().clone()
            weight.copy_(self.shadow[name])
            self.shadow[name] = trained

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything that is needed to go on."""
        return {"num_updates": self.num_updates} | {f"shadow.{name}": value for name, value in self.shadow.items()}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Inverse of `state_dict`; the model must have the same weights by name."""
        self.num_updates = int(state["num_updates"])
        for name, value in self.shadow.items():
            value.copy_(torch.as_tensor(state[f"shadow.{name}"]))
