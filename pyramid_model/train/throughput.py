"""Tokens per second and MFU of a training, counted from the shapes of the model's calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from pyramid_model.dit.transformer import DiT, size_of
from pyramid_model.train.dit_loss import DiTObjective
from pyramid_model.train.flops import frame_tokens, mfu, train_flops
from pyramid_model.train.ranks import num_ranks
from pyramid_model.train.vae_loss import VAEObjective
from pyramid_model.vae.flops import decode_flops, encode_flops


class Throughput:
    """Counts what one rank of a training computes; applied to an objective from outside.

    Args:
        objective: of a DiT or of a VAE, whose forward passes with gradients are counted; of another, nothing is.
        share_batch: ranks that compute each batch together.
        peak_flops: operations per second of the device, see `flops.matrix_rate`.
    """

    def __init__(self, objective: nn.Module, share_batch: int, peak_flops: float):
        self.share_batch, self.peak_flops = share_batch, peak_flops
        self._tokens = self._flops = 0
        if isinstance(objective, DiTObjective):
            objective.dit.register_forward_pre_hook(self._count_dit, with_kwargs=True)
        elif isinstance(objective, VAEObjective):
            objective.register_forward_pre_hook(self._count_vae)

    def __call__(self, seconds: float) -> dict[str, float]:
        """Figures since the last call; `tokens_per_s` of all ranks, with the tokens of the history of a DiT.

        seconds: that the steps took.
        """
        tokens, flops = self._tokens / self.share_batch, self._flops / self.share_batch
        self._tokens = self._flops = 0
        if not flops or seconds <= 0:
            return {}
        speed = {"tokens_per_s": num_ranks() * tokens / seconds} if tokens else {}
        return speed | {"mfu": mfu(flops, seconds, self.peak_flops)}

    def _count_dit(self, dit: DiT, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        assert isinstance(dit.config, MiniFluxConfig | MMDiTConfig), "FLOPs are known for these two"
        columns, _, text = args
        sizes, batch = [[size_of(clip) for clip in column] for column in columns], len(columns[0][0])
        self._tokens += batch * sum(sum(frame_tokens(column)) for column in sizes)
        branches = options.get("branches", ())
        self._flops += train_flops(dit.config, sizes, text.embeds.shape[1], batch, branches=branches).total

    def _count_vae(self, objective: VAEObjective, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            batch, _, *size = args[0].shape
            config = objective.vae.config
            self._flops += 3 * batch * (encode_flops(config, *size) + decode_flops(config, *size))
