"""Offloading: models, or their layers, stay in the CPU's memory except while they compute."""

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
    """Moves models between the CPU's memory and the device.

    none: all models stay on the device. model: each is on the device only while it computes.
    sequential: in addition, the layers of the models in `in_turn` are copied to the device one at a time.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.offload: Offload = "none"
        self._hooked: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []

    def choose(self, offload: Offload, models: Sequence[nn.Module], in_turn: Sequence[nn.Module]) -> None:
        """Place `models` for this mode of offloading, before any of them computes.

        in_turn: models whose layers are copied to the device one at a time, if the mode is sequential.
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
        self._free_cache()

    @contextlib.contextmanager
    def working(self, *models: nn.Module) -> Iterator[None]:
        """Keep these models on the device within the `with` block."""
        moved = [model for model in models if self.offload != "none" and model not in self._hooked]
        for model in moved:
            model.to(self.device)
        try:
            yield
        finally:
            for model in moved:
                model.to(CPU)
            self._free_cache()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._hooked = [], []

    def _free_cache(self) -> None:
        if self.offload != "none" and self.device.type == "cuda":
            torch.cuda.empty_cache()


def layer_by_layer(model: nn.Module, device: torch.device) -> list[RemovableHandle]:
    """Hook every module so that its weights are copied to the device for each call and freed afterwards.

    The weights stay in the CPU's memory throughout, so nothing is copied back.
    """
    hooks = []
    for module in model.modules():
        weights = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if weights:
            on_call = _CopyForCall(weights, device)
            hooks += [
                module.register_forward_pre_hook(on_call.begin),
                module.register_forward_hook(on_call.end),
            ]
    return hooks


class _CopyForCall:
    """Hooks that copy the weights of one module to the device for the length of a call."""

    def __init__(self, weights: Sequence[Tensor], device: torch.device):
        self.weights, self.device = weights, device
        self.on_cpu = [weight.data for weight in weights]

    def begin(self, *_: object) -> None:
        for weight, copy in zip(self.weights, self.on_cpu, strict=True):
            weight.data = copy.to(self.device)

    def end(self, *_: object) -> None:
        for weight, copy in zip(self.weights, self.on_cpu, strict=True):
            weight.data = copy


def largest_layer_bytes(model: nn.Module) -> int:
    """Peak bytes of weights under sequential offloading: the largest leaf module, plus the weights
    that modules with children hold themselves.
    """
    layers, holders = [0], 0
    for module in model.modules():
        size_bytes = sum(
            weight.nbytes for weight in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        )
        if next(module.children(), None) is None:
            layers.append(size_bytes)
        else:
            holders += size_bytes
    return holders + max(layers)


def weight_bytes(model: nn.Module) -> int:
    """Weights and buffers of a model."""
    return sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
