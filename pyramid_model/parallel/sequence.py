"""Sequence parallelism: the ranks of a group share the tokens of one batch.

It is put on a transformer from outside. Everything in a block but attention goes token by token, so a block that is
given a stretch of the tokens and a layout of that stretch need not know of the others. For attention the ranks trade:
each gives away its tokens of most heads for everybody's tokens of a few heads (Ulysses, arXiv:2309.14509). Where heads
do not go round, keys and values do (`ring`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.distributed import ProcessGroup

from pyramid_model.dit.attention import QKV
from pyramid_model.dit.memory import BlockMemory
from pyramid_model.dit.packing import Packing
from pyramid_model.dit.transformer import DiT
from pyramid_model.parallel.exchange import gather_tokens, heads_for_tokens, own_group, share_bounds, tokens_for_heads
from pyramid_model.parallel.ring import RingAttention, share_memories

Attend = Callable[[QKV, BlockMemory | None], Tensor]


def sequence_parallel(dit: DiT, ulysses: int, ring: int = 1) -> None:
    """Let neighbouring ranks share the work of a transformer's blocks. All ranks call this together.

    From then on ulysses * ring neighbours call the transformer together and with equal arguments, and each gets the
    whole result. What a memory of history holds is this rank's part of it.

    In training, neighbours must compute the same loss from the result, and gradients must be averaged over all ranks,
    as DistributedDataParallel does: a rank's gradient is that of its tokens, times the number of neighbours.

    Args:
        dit: with the same weights on every rank; its `transform` is replaced, on this object alone.
        ulysses: ranks among which heads are dealt.
        ring: ranks among which keys and values go round (see `ring`); more than 1 is for sampling only.

    Raises:
        ValueError: the heads cannot be dealt to so many ranks, or all ranks not be cut into such neighbourhoods.
    """
    transform, rank, num_ranks = dit.transform, dist.get_rank(), ulysses * ring
    _check(dit.config.num_heads, ulysses, num_ranks)
    first = rank - rank % num_ranks
    starts = range(0, dist.get_world_size(), num_ranks)
    group = own_group([range(start, start + num_ranks) for start in starts])
    trade = own_group([range(start, start + ulysses) for start in range(0, dist.get_world_size(), ulysses)])
    rings = own_group([range(start + i, start + num_ranks, ulysses) for start in starts for i in range(ulysses)])
    own = rank - first
    traders = slice(own - own % ulysses, own - own % ulysses + ulysses + 1)  # where their stretches meet

    def transform_share(
        image: Tensor, text: Tensor, cond: Tensor, packing: Packing, memories: list[BlockMemory | None]
    ) -> Tensor:
        bounds = share_bounds(sum(packing.lengths), num_ranks)
        if ring > 1:
            share_memories(memories, rings)
            attend = RingAttention(packing, bounds[::ulysses], rings).attend
        else:
            attend = packing.attend
        if ulysses > 1:
            attend = by_heads(attend, bounds[traders], trade)
        shares = [Share(packing, start, stop, attend) for start, stop in pairwise(bounds)]
        texts = [0, *accumulate(sum(share.num_text) for share in shares)]
        images = [0, *accumulate(sum(share.num_image) for share in shares)]
        own_image, own_text = image[:, images[own] : images[own + 1]], text[:, texts[own] : texts[own + 1]]
        transformed = transform(own_image, own_text, cond, shares[own], memories)  # pyright: ignore[reportArgumentType]
        return gather_tokens(transformed, images, group)

    dit.transform = transform_share  # pyright: ignore[reportAttributeAccessIssue]


def _check(num_heads: int, ulysses: int, num_ranks: int) -> None:
    if num_heads % ulysses:
        raise ValueError(
            f"{num_heads} heads cannot be dealt to {ulysses} ranks: set ulysses to a number that divides the heads, "
            "and give the other ranks to ring"
        )
    if dist.get_world_size() % num_ranks:
        raise ValueError(
            f"{dist.get_world_size()} ranks cannot be cut into neighbourhoods of ulysses * ring = {num_ranks}: start a "
            "multiple of that"
        )


def by_heads(attend: Attend, bounds: Sequence[int], group: ProcessGroup) -> Attend:
    """`attend` for a rank's tokens of all heads, from one that takes all ranks' tokens of some heads.

    bounds: where the ranks' stretches meet.
    """
    sizes = [stop - start for start, stop in pairwise(bounds)]

    def attend_by_heads(qkv: QKV, memory: BlockMemory | None) -> Tensor:
        q, k, v = tokens_for_heads(torch.cat(qkv), sizes, group).chunk(3)
        found = rearrange(attend((q, k, v), memory), "b n (h d) -> b n h d", d=q.shape[-1])
        return heads_for_tokens(found, sizes, group)

    return attend_by_heads


class Share:
    """Layout of a stretch of a packing's joined sequence: what a block asks of a `Packing`.

    A stretch may hold nothing of a column, or no text at all.

    Args:
        whole: layout of all tokens.
        start, stop: the stretch, in tokens of the joined sequence.
        attend: as `Packing.attend`, for the tokens of the stretch.

    Attributes:
        num_text, num_image: text and image tokens of each column in the stretch.
        text_segments, image_segments, joined_segments: as in `Packing`, of the tokens in the stretch.
    """

    def __init__(self, whole: Packing, start: int, stop: int, attend: Attend):
        parts = zip([whole.num_text] * len(whole.num_noisy), whole.num_history, whole.num_noisy, strict=True)
        own = overlaps([n for part in parts for n in part], start, stop)
        text, history, noisy = own[0::3], own[1::3], own[2::3]
        self.num_text, self.num_image = text, _sums(history, noisy)
        by_segment = _alternating if whole.clean_history else _sums
        self.text_segments = by_segment(text, [0] * len(text))
        self.image_segments = by_segment(history, noisy)
        self.joined_segments = by_segment(_sums(text, history), noisy)
        self._attend = attend

    def attend(self, qkv: QKV, memory: BlockMemory | None) -> Tensor:
        """As `Packing.attend`, of the tokens of the stretch."""
        return self._attend(qkv, memory)

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """As `Packing.join`."""
        parts = zip(text.split(self.num_text, dim=1), image.split(self.num_image, dim=1), strict=True)
        return torch.cat([part for pair in parts for part in pair], dim=1)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """As `Packing.split`."""
        parts = joined.split(_alternating(self.num_text, self.num_image), dim=1)
        return torch.cat(parts[0::2], dim=1), torch.cat(parts[1::2], dim=1)


def overlaps(lengths: Sequence[int], start: int, stop: int) -> list[int]:
    """How much of each of some parts, which follow each other, lies between start and stop."""
    bounds = pairwise([0, *accumulate(lengths)])
    return [max(0, min(stop, last) - max(start, first)) for first, last in bounds]


def _sums(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _alternating(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [n for pair in zip(a, b, strict=True) for n in pair]
