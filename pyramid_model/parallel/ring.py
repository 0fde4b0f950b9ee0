"""Ring attention (arXiv:2310.01889): ranks keep their queries and pass keys and values around.

Each rank holds one range of the joined sequence, in rank order. The keys of a frame are a prefix of the sequence, so
among the tokens of another rank they are again a prefix, possibly empty: no mask is needed. The partial results are
combined by their log-sum-exp.

For sampling only: there is no backward pass.
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
from pyramid_model.dit.kv_cache import BlockKVCache
from pyramid_model.dit.packing import Packing
from pyramid_model.dit.rope import rotate
from pyramid_model.parallel.exchange import all_to_all, share_bounds

Span = tuple[int, int]  # start and stop token, counted in the whole sequence: cached tokens, then new ones


@dataclass(frozen=True)
class QueryGroup:
    """Queries of this rank that attend to the same keys.

    samples: range of the batch.
    queries: range of this rank's tokens.
    keys: range of the whole sequence.
    """

    samples: slice
    queries: slice
    keys: Span


class RingAttention:
    """Attention of one rank's queries to the keys of all ranks.

    Args:
        packing: layout of all tokens.
        bounds: boundaries of the ranks' shares of the joined sequence, as `share_bounds` returns them.
        group: the ranks of the ring.
    """

    def __init__(self, packing: Packing, bounds: Sequence[int], group: ProcessGroup):
        self.group, self.rank, self.num_ranks = group, dist.get_rank(group), dist.get_world_size(group)
        num_cached = packing.ends[0][-1] - packing.lengths[0]  # tokens of the only column, if there is a cache
        self.spans = [(num_cached + start, num_cached + stop) for start, stop in pairwise(bounds)]
        self.query_groups = query_groups(packing, self.spans[self.rank])
        self.ends_to_cache = [end for end in packing.ends[0] if num_cached < end <= packing.cache_tokens]
        self.rotation = packing.rotation[bounds[self.rank] : bounds[self.rank + 1]]

    def attend(self, qkv: QKV, kv_cache: BlockKVCache | None) -> Tensor:
        """As `Packing.attend`, for this rank's tokens: (b n h d) each -> (b n h*d). A collective call of the ring.

        Args:
            qkv: of this rank's tokens.
            kv_cache: a `RingKVCache`.

        Raises:
            RuntimeError: the queries require gradients.
        """
        q, k, v = qkv
        if q.requires_grad:
            raise RuntimeError(
                "ring attention has no gradients: sample under torch.no_grad(); for training use ring=1 and a number "
                "of ulysses ranks that divides the heads"
            )
        q, k = rotate(q, self.rotation), rotate(k, self.rotation)
        spans = [[span] for span in self.spans]
        if kv_cache is not None:
            assert isinstance(kv_cache, RingKVCache), "ring attention needs a cache that records its spans"
            k, v, spans = kv_cache.extend_ring(k, v, self.spans, self.ends_to_cache)
        accumulator = OnlineSoftmax(q)
        kv = torch.stack([k, v])
        for turn in range(self.num_ranks):
            owner = (self.rank - turn) % self.num_ranks
            next_kv, transfers = kv, []
            if turn + 1 < self.num_ranks:
                next_kv, transfers = self._send_on(kv, num_tokens(spans[owner - 1]))
            self._attend_span(q, kv[0], kv[1], spans[owner], accumulator)
            for transfer in transfers:
                transfer.wait()
            kv = next_kv
        return accumulator.output.to(q.dtype).flatten(2)

    def _send_on(self, kv: Tensor, num_arriving: int) -> tuple[Tensor, list[Work]]:
        """Start to send keys and values (2 b n h d) to the next rank and to receive those of the previous rank.

        Returns:
            (received, transfers): `received` (2 b num_arriving h d) is valid once all transfers have finished.
        """
        received = kv.new_empty(*kv.shape[:2], num_arriving, *kv.shape[3:])
        next_rank, previous_rank = (self.rank + 1) % self.num_ranks, (self.rank - 1) % self.num_ranks
        moves = [(dist.isend, kv, next_rank), (dist.irecv, received, previous_rank)]
        operations = [dist.P2POp(op, x, group=self.group, group_peer=peer) for op, x, peer in moves if x.numel()]
        return received, dist.batch_isend_irecv(operations) if operations else []

    def _attend_span(self, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], accumulator: OnlineSoftmax) -> None:
        """Add the attention to one rank's keys and values to the accumulator; spans: positions of these keys."""

        def key_range(group: QueryGroup) -> tuple[slice, int, int]:
            start, stop = group.keys
            return group.samples, num_tokens(spans_before(spans, start)), num_tokens(spans_before(spans, stop))

        for (samples, start, stop), equal_groups in groupby(self.query_groups, key=key_range):
            if start < stop:
                groups = list(equal_groups)  # of one column, hence consecutive
                queries = slice(groups[0].queries.start, groups[-1].queries.stop)
                k_part, v_part = k[samples, start:stop], v[samples, start:stop]
                accumulator.add(samples, queries, *attention_with_lse(q[samples, queries], k_part, v_part))


def query_groups(packing: Packing, span: Span) -> list[QueryGroup]:
    """The queries in a rank's span grouped by their keys: one group for each frame and padding length.

    Padding tokens are in no group.
    """
    groups, column_start = [], 0
    for ends, pads in zip(packing.ends, packing.pads, strict=True):
        sample = 0
        for pad, equal_pads in groupby(pads):
            samples = slice(sample, sample + len(list(equal_pads)))
            sample = samples.stop
            for start, end in pairwise((0, *ends)):
                first, last = max(span[0], column_start + max(start, pad)), min(span[1], column_start + end)
                if first < last:
                    queries, keys = slice(first - span[0], last - span[0]), (column_start + pad, column_start + end)
                    groups.append(QueryGroup(samples, queries, keys))
        column_start += ends[-1]
    return groups


class OnlineSoftmax:
    """Online-softmax accumulator: attention output and log-sum-exp over the keys added so far.

    Attributes:
        output: (b n h d) float32; 0 before any keys.
        log_sum_exp: (b n h) float32; -inf before any keys.
    """

    def __init__(self, q: Tensor):
        self.output = torch.zeros_like(q, dtype=torch.float32)
        self.log_sum_exp = q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)

    def add(self, samples: slice, queries: slice, output: Tensor, log_sum_exp: Tensor) -> None:
        """Merge the attention of some queries to further keys.

        Args:
            samples, queries: ranges of b and n.
            output: attention to these keys alone, (b' n' h d).
            log_sum_exp: of these keys' scores, (b' n' h).
        """
        at = samples, queries
        total = torch.logaddexp(self.log_sum_exp[at], log_sum_exp)
        old_weight, new_weight = (torch.exp(lse - total)[..., None] for lse in (self.log_sum_exp[at], log_sum_exp))
        self.output[at] = old_weight * self.output[at] + new_weight * output
        self.log_sum_exp[at] = total


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention output (b n h d) and log-sum-exp of the scores (b n h), float32. q, k, v: (b n h d).

    Calls the kernels behind `F.scaled_dot_product_attention`, which does not return the log-sum-exp.
    """
    aten = torch.ops.aten
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.dtype in (torch.float16, torch.bfloat16):
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:  # flash attention on a GPU takes half precision only
        out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        lse = lse[:, :, : q.shape[2]]  # the kernel pads to a multiple of 32 queries
    return out.transpose(1, 2), lse.transpose(1, 2).float()


class RingKVCache(BlockKVCache):
    """One rank's share of a block's KV cache. Each rank caches an equal part of every frame, which balances the ring.

    Arguments count tokens of the whole sequence. The cached tokens are in sequence order, with gaps.

    Attributes:
        spans: for each rank of the ring, the spans of the sequence that it caches.
    """

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.group, self.rank, self.num_ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self.spans: list[list[Span]] = [[] for _ in range(self.num_ranks)]

    def extend_ring(
        self, keys: Tensor, values: Tensor, new: Sequence[Span], ends: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[list[Span]]]:
        """Append this rank's new tokens to its cached ones; cache its share of new frames. A collective call.

        Args:
            keys, values: of this rank's new tokens, (b n h d) each.
            new: span of each rank's new tokens; together they follow the cached tokens.
            ends: ends of the new frames that are to be cached.

        Returns:
            (keys, values, spans): of this rank's cached tokens followed by its new ones, (b cached+n h d) each, and for
            each rank the spans of the tokens that it has.
        """
        spans = [[*cached, span] for cached, span in zip(self.spans, new, strict=True)]
        extended = self.extend(keys, values, self.num_tokens)
        if ends:
            own_share = self._distribute(torch.stack([keys, values]), new, [new[0][0], *ends])
            cached = [] if self.keys is None or self.values is None else [torch.stack([self.keys, self.values])]
            self.keys, self.values = torch.cat([*cached, own_share], dim=2)
        return *extended, spans

    def _distribute(self, kv: Tensor, new: Sequence[Span], bounds: Sequence[int]) -> Tensor:
        """Divide the tokens of each frame equally among the ranks, and record the spans that each rank gets.

        Args:
            kv: keys and values of this rank's new tokens, (2 b n h d).
            new: span of each rank's new tokens.
            bounds: start of the first frame, then the end of each frame.

        Returns:
            Keys and values of this rank's share, (2 b n' h d).
        """
        frames = [(start, share_bounds(end - start, self.num_ranks)) for start, end in pairwise(bounds)]
        shares = [[(start + cuts[r], start + cuts[r + 1]) for start, cuts in frames] for r in range(self.num_ranks)]
        new_span = new[self.rank]
        send = [intersections(spans, new_span) for spans in shares]
        receive = [num_tokens(intersections(shares[self.rank], span)) for span in new]
        pieces = [kv[:, :, start - new_span[0] : stop - new_span[0]] for spans in send for start, stop in spans]
        outgoing = rearrange(torch.cat(pieces, dim=2), "kv b n h d -> n kv b h d")
        # Ranks are in sequence order, and so are the frames of each rank: the received tokens are in order.
        received = all_to_all(outgoing, [num_tokens(spans) for spans in send], receive, self.group)
        self.spans = [[*cached, *share] for cached, share in zip(self.spans, shares, strict=True)]
        return rearrange(received, "n kv b h d -> kv b n h d")

    def cut(self, num_tokens: int) -> None:
        """See `BlockKVCache.cut`."""
        self.spans = [spans_before(spans, num_tokens) for spans in self.spans]
        super().cut(sum(stop - start for start, stop in self.spans[self.rank]))


def share_kv_caches(kv_caches: list[BlockKVCache | None], group: ProcessGroup) -> None:
    """Replace each empty block cache in the list by a `RingKVCache`.

    Changes the caller's list, so that the caller's `KVCache` holds the ring caches in later calls too.
    """
    for block, kv_cache in enumerate(kv_caches):
        if kv_cache is not None and not isinstance(kv_cache, RingKVCache):
            assert kv_cache.keys is None, "a cache that was filled by one rank cannot be shared afterwards"
            kv_caches[block] = RingKVCache(group)


def intersections(spans: Sequence[Span], other: Span) -> list[Span]:
    """Intersection of each span with `other`; an empty span where they do not meet."""
    starts = [(max(start, other[0]), stop) for start, stop in spans]
    return [(start, max(start, min(stop, other[1]))) for start, stop in starts]


def spans_before(spans: Sequence[Span], end: int) -> list[Span]:
    """The parts of the spans that lie before token `end`; spans after it are omitted."""
    return [(start, min(stop, end)) for start, stop in spans if start < end]


def num_tokens(spans: Sequence[Span]) -> int:
    """Total number of tokens in the spans."""
    return sum(stop - start for start, stop in spans)
