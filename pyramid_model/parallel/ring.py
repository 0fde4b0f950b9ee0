"""Ring attention: each rank keeps its queries while keys and values go round, so no rank holds them all.

Ranks hold stretches of the joined sequence in order. A frame sees all that comes before its end, so of any other rank's
stretch its queries see the first part, or nothing: there is no mask here either. What is found in each stretch is put
together by the logarithm of its sum of exponentials (arXiv:2310.01889).

For sampling only: nothing remembers what the way back would need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from pyramid_model.dit.attention import QKV
from pyramid_model.dit.memory import BlockMemory
from pyramid_model.dit.packing import Packing
from pyramid_model.dit.rope import rotate
from pyramid_model.parallel.exchange import all_to_all, share_bounds

Span = tuple[int, int]  # from where up to where, in tokens of a whole sequence: what is remembered, then what is new


@dataclass(frozen=True)
class View:
    """Queries that see the same keys.

    samples, queries: of the batch, and of this rank's tokens.
    keys: of the whole sequence.
    """

    samples: slice
    queries: slice
    keys: Span


class RingAttention:
    """Attention of one rank's stretch to everybody's.

    Args:
        packing: layout of all tokens.
        bounds: where the ranks' stretches of its joined sequence meet.
        group: the ranks; all attend together.
    """

    def __init__(self, packing: Packing, bounds: Sequence[int], group: ProcessGroup):
        self.group, self.rank, self.num_ranks = group, dist.get_rank(group), dist.get_world_size(group)
        known = packing.ends[0][-1] - packing.lengths[0]
        self.spans = [(known + start, known + stop) for start, stop in pairwise(bounds)]
        self.views = views(packing, self.spans[self.rank])
        self.remembered_ends = [end for end in packing.ends[0] if known < end <= packing.keep]
        self.rotation = packing.rotation[bounds[self.rank] : bounds[self.rank + 1]]

    def attend(self, qkv: QKV, memory: BlockMemory | None) -> Tensor:
        """As `Packing.attend`, of this rank's tokens; memory: a `RingMemory`.

        Raises:
            RuntimeError: gradients are wanted.
        """
        q, k, v = qkv
        if q.requires_grad:
            raise RuntimeError(
                "ring attention has no gradients: sample under torch.no_grad(), and train on a number of ranks that "
                "divides the heads, which needs no ring"
            )
        q, k = rotate(q, self.rotation), rotate(k, self.rotation)
        spans = [[span] for span in self.spans]
        if memory is not None:
            assert isinstance(memory, RingMemory), "only memory that knows where its tokens lie goes round"
            k, v, spans = memory.extend_stretch(k, v, self.spans, self.remembered_ends)
        found = Found(q)
        held = torch.stack([k, v])
        for turn in range(self.num_ranks):
            owner = (self.rank - turn) % self.num_ranks
            arriving, works = held, []
            if turn + 1 < self.num_ranks:
                arriving, works = self._pass_on(held, count(spans[owner - 1]))
            self._look(q, held[0], held[1], spans[owner], found)
            for work in works:
                work.wait()
            held = arriving
        return found.value.to(q.dtype).flatten(2)

    def _pass_on(self, held: Tensor, num_arriving: int) -> tuple[Tensor, list[Work]]:
        """Start sending keys and values (2 b n h d) to the next rank; what will arrive from the one before."""
        arriving = held.new_empty(*held.shape[:2], num_arriving, *held.shape[3:])
        after, before = (self.rank + 1) % self.num_ranks, (self.rank - 1) % self.num_ranks
        moves = [(dist.isend, held, after), (dist.irecv, arriving, before)]
        operations = [dist.P2POp(op, x, group=self.group, group_peer=peer) for op, x, peer in moves if x.numel()]
        return arriving, dist.batch_isend_irecv(operations) if operations else []

    def _look(self, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], found: Found) -> None:
        """Add what the queries find in one stretch; spans: where its tokens lie."""

        def part(view: View) -> tuple[slice, int, int]:
            start, stop = view.keys
            return view.samples, count(before(spans, start)), count(before(spans, stop))

        for (samples, start, stop), run in groupby(self.views, key=part):
            if start < stop:
                same = list(run)  # of one column, so they follow each other
                queries = slice(same[0].queries.start, same[-1].queries.stop)
                k_part, v_part = k[samples, start:stop], v[samples, start:stop]
                found.add(samples, queries, *attention_with_lse(q[samples, queries], k_part, v_part))


def views(packing: Packing, own: Span) -> list[View]:
    """What the queries in a stretch see, frame by frame; padding sees nothing."""
    found, column = [], 0
    for ends, pads in zip(packing.ends, packing.pads, strict=True):
        done = 0
        for pad, run in groupby(pads):
            samples = slice(done, done + len(list(run)))
            done = samples.stop
            for start, end in pairwise((0, *ends)):
                first, last = max(own[0], column + max(start, pad)), min(own[1], column + end)
                if first < last:
                    found.append(View(samples, slice(first - own[0], last - own[0]), (column + pad, column + end)))
        column += ends[-1]
    return found


class Found:
    """What queries (b n h d) have found so far, and the logarithm of the weight of it all; float32."""

    def __init__(self, q: Tensor):
        self.value = torch.zeros_like(q, dtype=torch.float32)
        self.log_weight = q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)

    def add(self, samples: slice, queries: slice, value: Tensor, log_weight: Tensor) -> None:
        """What some of the queries found elsewhere, and its weight."""
        at = samples, queries
        total = torch.logaddexp(self.log_weight[at], log_weight)
        old, new = (torch.exp(weight - total)[..., None] for weight in (self.log_weight[at], log_weight))
        self.value[at] = old * self.value[at] + new * value
        self.log_weight[at] = total


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (b n h d), and the logarithm of the sum of exponentials by which it was divided, (b n h) float32.

    These are the kernels behind `F.scaled_dot_product_attention`, which keeps the second result to itself.
    """
    aten = torch.ops.aten
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.dtype in (torch.float16, torch.bfloat16):
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:  # flash attention on a GPU is for half precision alone
        out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        lse = lse[:, :, : q.shape[2]]  # it comes in blocks of 32 queries
    return out.transpose(1, 2), lse.transpose(1, 2).float()


class RingMemory(BlockMemory):
    """One rank's share of what a block remembers: of each frame an equal part, so that no rank has more to go round.

    Numbers of tokens that others name count the whole sequence; what it holds is in the same order, with gaps.

    Attributes:
        spans: of each rank of the ring, where the tokens lie that it remembers.
    """

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.group, self.rank, self.num_ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self.spans: list[list[Span]] = [[] for _ in range(self.num_ranks)]

    def extend_stretch(
        self, keys: Tensor, values: Tensor, new: Sequence[Span], ends: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[list[Span]]]:
        """What this rank remembers followed by what is new to it, and where what each rank then has lies.

        Args:
            keys, values: of this rank's new tokens, (b n h d).
            new: where each rank's new tokens lie; together they follow what is remembered.
            ends: of the frames that are new and remembered from now on.
        """
        spans = [[*known, span] for known, span in zip(self.spans, new, strict=True)]
        extended = self.extend(keys, values, self.num_tokens)
        if ends:
            dealt = self._deal(torch.stack([keys, values]), new, [new[0][0], *ends])
            old = [] if self.keys is None or self.values is None else [torch.stack([self.keys, self.values])]
            self.keys, self.values = torch.cat([*old, dealt], dim=2)
        return *extended, spans

    def _deal(self, held: Tensor, new: Sequence[Span], bounds: Sequence[int]) -> Tensor:
        """Deal frames out, an equal part of each to each rank; what this rank gets of keys and values (2 b n h d)."""
        shares = [(start, share_bounds(end - start, self.num_ranks)) for start, end in pairwise(bounds)]
        dealt = [[(at + cut[r], at + cut[r + 1]) for at, cut in shares] for r in range(self.num_ranks)]
        own = new[self.rank]
        send = [common(spans, own) for spans in dealt]
        receive = [count(common(dealt[self.rank], span)) for span in new]
        pieces = [held[:, :, start - own[0] : stop - own[0]] for spans in send for start, stop in spans]
        out = rearrange(torch.cat(pieces, dim=2), "kv b n h d -> n kv b h d")
        # from rank to rank, and in each from frame to frame, they come in the order of the sequence
        mine = all_to_all(out, [count(spans) for spans in send], receive, self.group)
        self.spans = [[*known, *more] for known, more in zip(self.spans, dealt, strict=True)]
        return rearrange(mine, "n kv b h d -> kv b n h d")

    def cut(self, num_tokens: int) -> None:
        """See `BlockMemory.cut`."""
        self.spans = [before(rank, num_tokens) for rank in self.spans]
        super().cut(count(self.spans[self.rank]))


def share_memories(memories: list[BlockMemory | None], group: ProcessGroup) -> None:
    """Put this rank's share in the place of each memory that is still empty.

    In place: whoever brought the list keeps what is remembered in it from call to call.
    """
    for block, memory in enumerate(memories):
        if memory is not None and not isinstance(memory, RingMemory):
            assert memory.keys is None, "what was remembered before the ranks shared cannot be dealt out"
            memories[block] = RingMemory(group)


def common(spans: Sequence[Span], with_span: Span) -> list[Span]:
    """What each of some spans has in common with another; an empty span where that is nothing."""
    starts = [(max(start, with_span[0]), stop) for start, stop in spans]
    return [(start, max(start, min(stop, with_span[1]))) for start, stop in starts]


def before(spans: Sequence[Span], end: int) -> list[Span]:
    """What of some spans lies before a token."""
    return [(start, min(stop, end)) for start, stop in spans if start < end]


def count(spans: Sequence[Span]) -> int:
    """Tokens in some spans."""
    return sum(stop - start for start, stop in spans)
