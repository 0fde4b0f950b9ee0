"""Where models are while they work and while they wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Offload = Literal["none", "model", "sequential"]

CPU = torch.device("cpu")


class Placement:
    """Brings models to the device they work on.

    none: all of them stay there. model: each is there while it works, and in the CPU's memory otherwise.
    sequential: of those that are named to `working` as `in_turn`, even the layers come one after the other.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.offload: Offload = "none"
        self._hooked: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []

    def choose(self, offload: Offload, models: Sequence[nn.Module], in_turn: Sequence[nn.Module]) -> None:
        """Settle `models` as this kind of offloading wants them before any works.

        in_turn: those of them whose layers come one after the other where it is sequential.
        """
        if offload != self.offload or set(in_turn) != set(self._hooked):
            self._unhook()
        self.offload = offload
        for model in models:
            if model in self._hooked:
                continue
            model.to(self.device if offload == "none" else CPU)
            if offload == "sequential" and model in in_turn:
                self._hooks += layer_by_layer(model, self.device)
                self._hooked.append(model)
        self._let_go()

    @contextlib.contextmanager
    def working(self, *models: nn.Module) -> Iterator[None]:
        """Have these models on the device."""
        moved = [model for model in models if self.offload != "none" and model not in self._hooked]
        for model in moved:
            model.to(self.device)
        try:
            yield
        finally:
            for model in moved:
                model.to(CPU)
            self._let_go()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._hooked = [], []

    def _let_go(self) -> None:
        if self.offload != "none" and self.device.type == "cuda":
            torch.cuda.empty_cache()


def layer_by_layer(model: nn.Module, device: torch.device) -> list[RemovableHandle]:
    """Let every module bring its own weights to the device when it is called, and drop them there afterwards.

    The weights stay in the CPU's memory throughout, so nothing travels back.
    """
    hooks = []
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own:
            stay = _Stay(own, device)
            hooks += [module.register_forward_pre_hook(stay.begin), module.register_forward_hook(stay.end)]
    return hooks


class _Stay:
    """Weights of one module, on the device for as long as the module works."""

    def __init__(self, weights: Sequence[Tensor], device: torch.device):
        self.weights, self.device = weights, device
        self.at_home = [weight.data for weight in weights]

    def begin(self, *_: object) -> None:
        for weight, home in zip(self.weights, self.at_home, strict=True):
            weight.data = home.to(self.device)

    def end(self, *_: object) -> None:
        for weight, home in zip(self.weights, self.at_home, strict=True):
            weight.data = home


def largest_layer_bytes(model: nn.Module) -> int:
    """Most weights that sequential offloading has on the device at a time: the largest layer, and what holds layers."""
    layers, holders = [0], 0
    for module in model.modules():
        own = sum(weight.nbytes for weight in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        if next(module.children(), None) is None:
            layers.append(own)
        else:
            holders += own
    return holders + max(layers)


def weight_bytes(model: nn.Module) -> int:
    """Weights and buffers of a model."""
    return sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
