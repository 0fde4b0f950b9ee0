"""Tokens and heads change ranks; the shares need not be equal."""

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
    """Where the shares of `size` ranks meet, size + 1 numbers from 0 to total; shares differ by at most one."""
    return [total * rank // size for rank in range(size + 1)]


def own_group(parts: Sequence[Sequence[int]]) -> ProcessGroup:
    """This rank's group of those into which all ranks are cut. All ranks call this together, with equal parts."""
    rank = dist.get_rank()
    # each rank helps to make every group, as torch wants it
    groups = [(part, dist.new_group(list(part))) for part in parts]
    (own,) = (group for part, group in groups if rank in part)
    return own  # pyright: ignore[reportReturnType]


def tokens_for_heads(x: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """From some tokens of all heads to all tokens of some heads.

    Args:
        x: this rank's tokens, (b n h d); the ranks divide h.
        sizes: tokens of each rank, one after the other.
        group: the ranks; all call this together.

    Returns:
        (b sum(sizes) h/ranks d).
    """
    ranks = len(sizes)
    out = rearrange(x, "b n (r h) d -> (r n) b h d", r=ranks)
    everybody = _AllToAll.apply(out, [x.shape[1]] * ranks, list(sizes), group)
    return rearrange(everybody, "n b h d -> b n h d")


def heads_for_tokens(x: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """Inverse of `tokens_for_heads`: (b sum(sizes) h d) of some heads -> (b n h*ranks*d) of this rank's tokens."""
    ranks = len(sizes)
    own = sizes[dist.get_rank(group)]
    out = rearrange(x, "b n h d -> n b h d")
    mine = _AllToAll.apply(out, list(sizes), [own] * ranks, group)
    return rearrange(mine, "(r n) b h d -> b n (r h d)", r=ranks)


def gather_tokens(x: Tensor, bounds: Sequence[int], group: ProcessGroup) -> Tensor:
    """All tokens (b n d) from each rank's share of them; bounds: where the shares meet.

    Every rank is to compute the same from what it gets. Its gradient then holds what all ranks together would send
    back, so its own share of it, times the number of ranks, is what their sum would be.
    """
    return _Gather.apply(x, bounds, group)  # pyright: ignore[reportReturnType]


class _AllToAll(torch.autograd.Function):
    """Pieces of the first axis, one for each rank, against theirs; backwards they go home."""

    @staticmethod
    def forward(ctx, x: Tensor, send: list[int], receive: list[int], group: ProcessGroup) -> Tensor:
        ctx.sizes = receive, send, group
        return all_to_all(x, send, receive, group)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return all_to_all(grad, *ctx.sizes), None, None, None


def all_to_all(x: Tensor, send: list[int], receive: list[int], group: ProcessGroup) -> Tensor:
    """Pieces of x, (send[r] ...) for rank r, against the pieces (receive[r] ...) of the others."""
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out


class _Gather(torch.autograd.Function):
    """See `gather_tokens`."""

    @staticmethod
    def forward(ctx, x: Tensor, bounds: Sequence[int], group: ProcessGroup) -> Tensor:
        rank, sizes = dist.get_rank(group), [stop - start for start, stop in pairwise(bounds)]
        ctx.share, ctx.ranks = (bounds[rank], bounds[rank + 1]), len(sizes)
        longest = max(sizes)
        # equal pieces: the one collective for which every backend has a fast path
        padded = F.pad(x, (0, 0, 0, longest - x.shape[1])).contiguous()
        pieces = x.new_empty(len(sizes), *padded.shape)
        dist.all_gather_into_tensor(pieces, padded[None], group=group)
        return torch.cat([piece[:, :size] for piece, size in zip(pieces, sizes, strict=True)], dim=1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        start, stop = ctx.share
        return ctx.ranks * grad[:, start:stop], None, None
