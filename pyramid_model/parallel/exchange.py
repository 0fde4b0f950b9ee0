"""Differentiable collectives over tokens and attention heads, for shares of unequal size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F


def share_bounds(total: int, size: int) -> list[int]:
    """Boundaries that divide `total` items among `size` ranks: size + 1 numbers from 0 to total.

    The shares differ by at most one item.
    """
    return [total * rank // size for rank in range(size + 1)]


def own_group(parts: Sequence[Sequence[int]]) -> ProcessGroup:
    """Create one process group for each part, and return the group that contains this rank.

    A collective call: all ranks call it with equal `parts`. Every rank is in exactly one part.
    """
    rank = dist.get_rank()
    # torch requires every rank to take part in creating every group
    groups = [(part, dist.new_group(list(part))) for part in parts]
    (group_of_rank,) = (group for part, group in groups if rank in part)
    return group_of_rank  # pyright: ignore[reportReturnType]


def tokens_for_heads(x: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """Redistribute from a share of the tokens with all heads to all tokens with a share of the heads.

    Args:
        x: this rank's tokens, (b n h d); the number of ranks divides h.
        sizes: number of tokens on each rank, in rank order.
        group: the ranks; a collective call.

    Returns:
        (b sum(sizes) h/ranks d).
    """
    ranks = len(sizes)
    send = rearrange(x, "b n (r h) d -> (r n) b h d", r=ranks)
    received = _AllToAll.apply(send, [x.shape[1]] * ranks, list(sizes), group)
    return rearrange(received, "n b h d -> b n h d")


def heads_for_tokens(x: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """Inverse of `tokens_for_heads`, with the heads flattened.

    (b sum(sizes) h d), all tokens with a share of the heads -> (b n ranks*h*d), this rank's tokens with all heads.
    """
    ranks = len(sizes)
    own_size = sizes[dist.get_rank(group)]
    send = rearrange(x, "b n h d -> n b h d")
    received = _AllToAll.apply(send, list(sizes), [own_size] * ranks, group)
    return rearrange(received, "(r n) b h d -> b n (r h d)", r=ranks)


def gather_tokens(x: Tensor, bounds: Sequence[int], group: ProcessGroup) -> Tensor:
    """Gather the tokens of all ranks: (b n d) on every rank.

    Every rank must compute the same loss from the result. All ranks then have equal gradients, so the backward pass
    takes this rank's share of its own gradient times the number of ranks, which equals the sum over ranks.

    Args:
        x: this rank's share of the tokens.
        bounds: boundaries of the shares, as `share_bounds` returns them.
        group: the ranks; a collective call.
    """
    return _Gather.apply(x, bounds, group)  # pyright: ignore[reportReturnType]


class _AllToAll(torch.autograd.Function):
    """Differentiable all-to-all over axis 0; the backward pass sends gradients back to where the values came from."""

    @staticmethod
    def forward(ctx, x: Tensor, send: list[int], receive: list[int], group: ProcessGroup) -> Tensor:
        ctx.sizes = receive, send, group
        return all_to_all(x, send, receive, group)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        return all_to_all(grad_outputs[0], *ctx.sizes), None, None, None


def all_to_all(x: Tensor, send: list[int], receive: list[int], group: ProcessGroup) -> Tensor:
    """Send send[r] rows of x to each rank r, and return the rows received, receive[r] from each, in rank order."""
    received = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), receive, send, group=group)
    return received


class _Gather(torch.autograd.Function):
    """See `gather_tokens`."""

    @staticmethod
    def forward(ctx, x: Tensor, bounds: Sequence[int], group: ProcessGroup) -> Tensor:
        rank, sizes = dist.get_rank(group), [stop - start for start, stop in pairwise(bounds)]
        ctx.share, ctx.ranks = (bounds[rank], bounds[rank + 1]), len(sizes)
        longest = max(sizes)
        # padded to equal size: every backend has a fast path for this collective
        padded = F.pad(x, (0, 0, 0, longest - x.shape[1])).contiguous()
        pieces = x.new_empty(len(sizes), *padded.shape)
        dist.all_gather_into_tensor(pieces, padded[None], group=group)
        return torch.cat([piece[:, :size] for piece, size in zip(pieces, sizes, strict=True)], dim=1)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        start, stop = ctx.share
        return ctx.ranks * grad_outputs[0][:, start:stop], None, None
