"""Sequence parallelism: the ranks of a group share the tokens of one batch.

It is put on a transformer from outside. Everything in a block but attention goes token by token, so a block that is
given a stretch of the tokens and a layout of that stretch need not know of the others. For attention the ranks trade:
each gives away its tokens of most heads for everybody's tokens of a few heads (Ulysses, arXiv:2309.14509).
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
from pyramid_model.parallel.exchange import gather_tokens, heads_for_tokens, share_bounds, tokens_for_heads

Attend = Callable[[QKV, BlockMemory | None], Tensor]


def sequence_parallel(dit: DiT, group: ProcessGroup) -> None:
    """Let the ranks of a group share the work of a transformer's blocks.

    From then on the ranks call the transformer together and with equal arguments, and each gets the whole result. What
    a memory of history holds is this rank's part of it.

    In training, every rank must compute the same loss from the result, and gradients must be averaged over the ranks,
    as DistributedDataParallel does: a rank's gradient is that of its tokens, times the number of ranks.

    Args:
        dit: with the same weights on every rank; its `transform` is replaced, on this object alone.
        group: the ranks.

    Raises:
        ValueError: the heads cannot be dealt to the ranks.
    """
    transform, rank, num_ranks = dit.transform, dist.get_rank(group), dist.get_world_size(group)
    if dit.config.num_heads % num_ranks:
        raise ValueError(
            f"{dit.config.num_heads} heads cannot be dealt to {num_ranks} ranks: take a number of ranks that divides "
            "the heads"
        )

    def transform_share(
        image: Tensor, text: Tensor, cond: Tensor, packing: Packing, memories: Sequence[BlockMemory | None]
    ) -> Tensor:
        bounds = share_bounds(sum(packing.lengths), num_ranks)
        sizes = [stop - start for start, stop in pairwise(bounds)]

        def attend(qkv: QKV, memory: BlockMemory | None) -> Tensor:
            q, k, v = tokens_for_heads(torch.cat(qkv), sizes, group).chunk(3)
            found = rearrange(packing.attend((q, k, v), memory), "b n (h d) -> b n h d", d=q.shape[-1])
            return heads_for_tokens(found, sizes, group)

        shares = [Share(packing, start, stop, attend) for start, stop in pairwise(bounds)]
        texts = [0, *accumulate(sum(share.num_text) for share in shares)]
        images = [0, *accumulate(sum(share.num_image) for share in shares)]
        own_image, own_text = image[:, images[rank] : images[rank + 1]], text[:, texts[rank] : texts[rank + 1]]
        transformed = transform(own_image, own_text, cond, shares[rank], memories)  # pyright: ignore[reportArgumentType]
        return gather_tokens(transformed, images, group)

    dit.transform = transform_share


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
        self.attend = attend

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """As `Packing.join`."""
        parts = zip(text.split(self.num_text, dim=-2), image.split(self.num_image, dim=-2), strict=True)
        return torch.cat([part for pair in parts for part in pair], dim=-2)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """As `Packing.split`."""
        parts = joined.split(_alternating(self.num_text, self.num_image), dim=-2)
        return torch.cat(parts[0::2], dim=-2), torch.cat(parts[1::2], dim=-2)


def overlaps(lengths: Sequence[int], start: int, stop: int) -> list[int]:
    """How much of each of some parts, which follow each other, lies between start and stop."""
    bounds = pairwise([0, *accumulate(lengths)])
    return [max(0, min(stop, last) - max(start, first)) for first, last in bounds]


def _sums(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _alternating(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [n for pair in zip(a, b, strict=True) for n in pair]
