"""Sequence parallelism: the ranks of a group share the tokens of one batch.

It is applied to a transformer from outside. All operations of a block except attention are token-wise, so each rank
runs the blocks on a range of the tokens with a layout of that range. For attention, an all-to-all exchanges a range of
tokens with all heads for all tokens with a share of the heads (Ulysses, arXiv:2309.14509). If the ranks do not divide
the heads, ring attention shares the keys and values too (`ring`).
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
from pyramid_model.dit.kv_cache import BlockKVCache
from pyramid_model.dit.packing import Packing
from pyramid_model.dit.transformer import DiT
from pyramid_model.parallel.exchange import gather_tokens, heads_for_tokens, own_group, share_bounds, tokens_for_heads
from pyramid_model.parallel.ring import RingAttention, share_kv_caches

Attend = Callable[[QKV, BlockKVCache | None], Tensor]


def sequence_parallel(dit: DiT, ulysses: int, ring: int = 1) -> None:
    """Let groups of consecutive ranks share the work of a transformer's blocks. A collective call of all ranks.

    Afterwards the ulysses * ring ranks of a group call the transformer with equal arguments, and each gets the whole
    result. A KV cache holds this rank's share only.

    In training, the ranks of a group must compute the same loss from the result, and gradients must be averaged over
    all ranks, as DistributedDataParallel does: the gradient on a rank is the contribution of its tokens, times the
    number of ranks in the group.

    Args:
        dit: with the same weights on every rank; the `transform` of this object is replaced.
        ulysses: ranks that divide the heads among them.
        ring: ranks that pass keys and values around (see `ring`); more than 1 is for sampling only.

    Raises:
        ValueError: `ulysses` does not divide the heads, or ulysses * ring does not divide the number of ranks.
    """
    transform, rank, num_ranks = dit.transform, dist.get_rank(), ulysses * ring
    _check(dit.config.num_heads, ulysses, num_ranks)
    first = rank - rank % num_ranks
    starts = range(0, dist.get_world_size(), num_ranks)
    group = own_group([range(start, start + num_ranks) for start in starts])
    ulysses_group = own_group([range(start, start + ulysses) for start in range(0, dist.get_world_size(), ulysses)])
    ring_group = own_group([range(start + i, start + num_ranks, ulysses) for start in starts for i in range(ulysses)])
    group_rank = rank - first
    ulysses_first = group_rank - group_rank % ulysses
    ulysses_bounds = slice(ulysses_first, ulysses_first + ulysses + 1)

    def transform_share(
        image: Tensor, text: Tensor, cond: Tensor, packing: Packing, kv_caches: list[BlockKVCache | None]
    ) -> Tensor:
        bounds = share_bounds(sum(packing.lengths), num_ranks)
        if ring > 1:
            share_kv_caches(kv_caches, ring_group)
            attend = RingAttention(packing, bounds[::ulysses], ring_group).attend
        else:
            attend = packing.attend
        if ulysses > 1:
            attend = ulysses_attention(attend, bounds[ulysses_bounds], ulysses_group)
        shares = [Share(packing, start, stop, attend) for start, stop in pairwise(bounds)]
        texts = [0, *accumulate(sum(share.num_text) for share in shares)]
        images = [0, *accumulate(sum(share.num_image) for share in shares)]
        own_image = image[:, images[group_rank] : images[group_rank + 1]]
        own_text = text[:, texts[group_rank] : texts[group_rank + 1]]
        share = shares[group_rank]
        transformed = transform(own_image, own_text, cond, share, kv_caches)  # pyright: ignore[reportArgumentType]
        return gather_tokens(transformed, images, group)

    dit.transform = transform_share  # pyright: ignore[reportAttributeAccessIssue]


def _check(num_heads: int, ulysses: int, num_ranks: int) -> None:
    if num_heads % ulysses:
        raise ValueError(
            f"ulysses {ulysses} does not divide the {num_heads} heads: set ulysses to a divisor of {num_heads}, and "
            "use the other ranks for ring"
        )
    if dist.get_world_size() % num_ranks:
        raise ValueError(
            f"{dist.get_world_size()} ranks do not divide into groups of ulysses * ring = {num_ranks}: start a "
            f"multiple of {num_ranks} ranks"
        )


def ulysses_attention(attend: Attend, bounds: Sequence[int], group: ProcessGroup) -> Attend:
    """Attention over a rank's tokens with all heads, by way of `attend` over all ranks' tokens with some heads.

    Args:
        attend: takes all tokens of the group with this rank's share of the heads.
        bounds: boundaries of the ranks' shares of the tokens, one more than there are ranks.
        group: the ranks.
    """
    sizes = [stop - start for start, stop in pairwise(bounds)]

    def attend_own_tokens(qkv: QKV, kv_cache: BlockKVCache | None) -> Tensor:
        q, k, v = tokens_for_heads(torch.cat(qkv), sizes, group).chunk(3)
        attended = rearrange(attend((q, k, v), kv_cache), "b n (h d) -> b n h d", d=q.shape[-1])
        return heads_for_tokens(attended, sizes, group)

    return attend_own_tokens


class Share:
    """Layout of one rank's range of a packing's joined sequence, with the interface that blocks use of a `Packing`.

    The range may contain no token of a column, or no text.

    Args:
        whole: layout of all tokens.
        start, stop: the range, in tokens of the joined sequence.
        attend: as `Packing.attend`, for the tokens of the range.

    Attributes:
        num_text, num_image: text and image tokens in the range, of each noisy clip with its history.
        text_segments, image_segments, joined_segments: as in `Packing`, for the tokens of the range.
    """

    def __init__(self, whole: Packing, start: int, stop: int, attend: Attend):
        parts = zip(whole.num_texts, whole.num_history, whole.num_noisy, strict=True)
        counts = overlaps([n for part in parts for n in part], start, stop)
        text, history, noisy = counts[0::3], counts[1::3], counts[2::3]
        self.num_text, self.num_image = text, _sums(history, noisy)
        by_segment = _alternating if whole.clean_history else _sums
        self.text_segments = by_segment(text, [0] * len(text))
        self.image_segments = by_segment(history, noisy)
        self.joined_segments = by_segment(_sums(text, history), noisy)
        self._attend = attend

    def attend(self, qkv: QKV, kv_cache: BlockKVCache | None) -> Tensor:
        """As `Packing.attend`, for the tokens of the range."""
        return self._attend(qkv, kv_cache)

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """As `Packing.join`."""
        parts = zip(text.split(self.num_text, dim=1), image.split(self.num_image, dim=1), strict=True)
        return torch.cat([part for pair in parts for part in pair], dim=1)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """As `Packing.split`."""
        parts = joined.split(_alternating(self.num_text, self.num_image), dim=1)
        return torch.cat(parts[0::2], dim=1), torch.cat(parts[1::2], dim=1)


def overlaps(lengths: Sequence[int], start: int, stop: int) -> list[int]:
    """Overlap of each of several consecutive parts with the range start..stop; lengths: size of each part."""
    bounds = pairwise([0, *accumulate(lengths)])
    return [max(0, min(stop, last) - max(start, first)) for first, last in bounds]


def _sums(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _alternating(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [n for pair in zip(a, b, strict=True) for n in pair]
