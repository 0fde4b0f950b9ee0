"""Parallel guidance: one half of the ranks predicts without the prompt, the other half with it."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pyramid_model.dit.kv_cache import KVCache
from pyramid_model.dit.transformer import DiT
from pyramid_model.parallel.exchange import own_group
from pyramid_model.text import TextFeatures


def guidance_parallel(dit: DiT, distance: int = 1) -> None:
    """Let the two ranks of each pair predict one half of every batch. A collective call of all ranks.

    Guidance evaluates a batch twice, without and with the prompt; the rows of either kind are one half of the batch.
    From then on, both ranks of a pair call the transformer with equal arguments, and both get the whole result. A KV
    cache holds only the rows that its rank predicts. A batch with an odd number of samples is predicted on both ranks.

    Can be combined with `sequence_parallel`, which must be applied first.

    Args:
        dit: with the same weights on every rank; the `forward` of this object is replaced.
        distance: difference between the two ranks of a pair: the number of ranks that share a sequence.

    Raises:
        ValueError: the number of ranks is not a multiple of 2 * distance.
    """
    num_ranks = dist.get_world_size()
    if num_ranks % (2 * distance):
        raise ValueError(
            f"{num_ranks} ranks cannot be paired at a distance of {distance}: start a multiple of {2 * distance} ranks"
        )
    forward, rank = dit.forward, dist.get_rank() // distance % 2
    starts = range(0, num_ranks, 2 * distance)
    group = own_group([(start + i, start + i + distance) for start in starts for i in range(distance)])

    def forward_half(
        columns: list[list[Tensor]],
        timestep: Tensor,
        text: TextFeatures,
        kv_cache: KVCache | None = None,
        num_cached: int = 0,
    ) -> list[Tensor]:
        samples, rows = len(columns[0][0]), len(timestep)
        if samples % 2:
            return forward(columns, timestep, text, kv_cache, num_cached)
        half_samples, half_rows = (slice(rank * n // 2, (rank + 1) * n // 2) for n in (samples, rows))
        half_columns = [[clip[half_samples] for clip in column] for column in columns]
        half_text = TextFeatures(text.embeds[half_rows], text.mask[half_rows], text.pooled[half_rows])
        return [_gather(v, group) for v in forward(half_columns, timestep[half_rows], half_text, kv_cache, num_cached)]

    dit.forward = forward_half  # pyright: ignore[reportAttributeAccessIssue]


def _gather(velocity: Tensor, group: ProcessGroup) -> Tensor:
    """Velocities of both ranks concatenated, (2b c t h w). velocity: (b c t h w).

    Raises:
        RuntimeError: the velocity requires gradients.
    """
    if velocity.requires_grad:
        raise RuntimeError("guidance on two ranks has no gradients: sample under torch.no_grad()")
    both = velocity.new_empty(2 * len(velocity), *velocity.shape[1:])
    dist.all_gather_into_tensor(both, velocity.contiguous(), group=group)
    return both
