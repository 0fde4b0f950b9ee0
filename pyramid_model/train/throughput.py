"""Tokens per second and MFU of the training of a DiT, counted from the shapes of its calls."""

from __future__ import annotations

from typing import Any

import torch

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from pyramid_model.dit.transformer import DiT, size_of
from pyramid_model.train.flops import frame_tokens, mfu, train_flops
from pyramid_model.train.ranks import num_ranks


class Throughput:
    """Counts what one rank of a training computes; applied to a DiT from outside.

    Args:
        dit: its forward passes with gradients are counted.
        share_batch: ranks that compute each batch together.
        peak_flops: operations per second of the device, see `flops.matrix_rate`.
    """

    def __init__(self, dit: DiT, share_batch: int, peak_flops: float):
        assert isinstance(dit.config, MiniFluxConfig | MMDiTConfig), "FLOPs are known for these two"
        self.config, self.share_batch, self.peak_flops = dit.config, share_batch, peak_flops
        self._tokens = self._flops = 0
        dit.register_forward_pre_hook(self._count)

    def __call__(self, seconds: float) -> dict[str, float]:
        """Figures since the last call; `tokens_per_s` of all ranks, with the tokens of the history.

        seconds: that the steps took.
        """
        tokens, flops = self._tokens / self.share_batch, self._flops / self.share_batch
        self._tokens = self._flops = 0
        if not tokens or seconds <= 0:
            return {}
        return {"tokens_per_s": num_ranks() * tokens / seconds, "mfu": mfu(flops, seconds, self.peak_flops)}

    def _count(self, dit: DiT, args: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():
            return
        columns, _, text = args
        sizes, batch = [[size_of(clip) for clip in column] for column in columns], len(columns[0][0])
        self._tokens += batch * sum(sum(frame_tokens(column)) for column in sizes)
        self._flops += train_flops(self.config, sizes, text.embeds.shape[1], batch).total
