"""Guidance on twice as many ranks: one half predicts without the prompt, the other with it."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pyramid_model.dit.memory import HistoryMemory
from pyramid_model.dit.transformer import DiT
from pyramid_model.parallel.exchange import own_group
from pyramid_model.text import TextFeatures


def guidance_parallel(dit: DiT, apart: int = 1) -> None:
    """Let pairs of ranks predict for half of a batch each. All ranks call this together.

    Guidance predicts for one batch twice, without the prompt and with it: each half is one rank's. The two call the
    transformer together and with equal arguments, and each gets the whole result; a memory of history holds what this
    rank predicted for. A batch that cannot be halved, as without guidance, is predicted for on both.

    It goes together with `sequence_parallel`, which is then put on first.

    Args:
        dit: with the same weights on every rank; its `forward` is replaced, on this object alone.
        apart: how far apart the two are: the number of neighbours that share the tokens.

    Raises:
        ValueError: not all ranks have a partner.
    """
    if dist.get_world_size() % (2 * apart):
        raise ValueError(f"{dist.get_world_size()} ranks are no pairs that are {apart} apart: start {2 * apart} ranks")
    forward, rank = dit.forward, dist.get_rank() // apart % 2
    starts = range(0, dist.get_world_size(), 2 * apart)
    group = own_group([(start + i, start + i + apart) for start in starts for i in range(apart)])

    def forward_part(
        columns: list[list[Tensor]],
        timestep: Tensor,
        text: TextFeatures,
        memory: HistoryMemory | None = None,
        remember: int = 0,
    ) -> list[Tensor]:
        samples, rows = len(columns[0][0]), len(timestep)
        if samples % 2:
            return forward(columns, timestep, text, memory, remember)
        own, own_rows = (slice(rank * n // 2, (rank + 1) * n // 2) for n in (samples, rows))
        own_columns = [[clip[own] for clip in column] for column in columns]
        own_text = TextFeatures(text.embeds[own_rows], text.mask[own_rows], text.pooled[own_rows])
        return [_gather(v, group) for v in forward(own_columns, timestep[own_rows], own_text, memory, remember)]

    dit.forward = forward_part


def _gather(velocity: Tensor, group: ProcessGroup) -> Tensor:
    """Velocities of both ranks, (b c t h w) each, one after the other."""
    if velocity.requires_grad:
        raise RuntimeError("guidance on two ranks has no gradients: sample under torch.no_grad()")
    both = velocity.new_empty(2 * len(velocity), *velocity.shape[1:])
    dist.all_gather_into_tensor(both, velocity.contiguous(), group=group)
    return both
