"""Attention that is causal by frame, without a mask.

A mask over all pairs of tokens would cost memory, shut out the fast kernels and compute what it then hides. Frames come
in order, so what a frame may see is always the first part of the sequence: one plain call a frame does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 4096  # tokens: enough to keep a GPU busy
QKV = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, each (b n h d)


def frame_attention(q: Tensor, k: Tensor, v: Tensor, ends: Sequence[int], pads: Sequence[int]) -> Tensor:
    """Each frame attends to itself and to all that comes before it.

    Args:
        q: queries of the last n of N tokens, (b n h d).
        k, v: keys and values of all tokens, (b N h d).
        ends: where the frames end, counted in all tokens; those that end before the first query are passed over.
        pads: padded tokens at the start of each sample's sequence. Nobody sees them, and what they find is zero.

    Returns:
        (b n h*d).
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    left = [end for end in ends if end > k.shape[2] - q.shape[2]]
    rows, done = [], 0
    for pad, run in groupby(pads):
        count = len(list(run))
        rows.append(_attend_frames(*(x[done : done + count] for x in (q, k, v)), left, pad))
        done += count
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _attend_frames(q: Tensor, k: Tensor, v: Tensor, ends: Sequence[int], pad: int) -> Tensor:
    """`frame_attention` of samples that have as much padding; q, k, v: (b h n d)."""
    first_query = start = k.shape[2] - q.shape[2]
    found = []
    for end in ends:
        begin = max(start, min(pad, end))
        queries = q[:, :, begin - first_query : end - first_query]
        out = F.scaled_dot_product_attention(queries, k[:, :, pad:end], v[:, :, pad:end])
        out = out.transpose(1, 2).flatten(2)
        found.append(F.pad(out, (0, 0, begin - start, 0)) if begin > start else out)
        start = end
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def in_chunks(apply: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
    """Apply something that treats each token alone to tokens (b n …), in parts where no gradient needs the whole.

    The wide inner layers of a block are what takes most memory; the result is the same.
    """
    if torch.is_grad_enabled() or tokens[0].shape[1] <= CHUNK:
        return apply(*tokens)
    parts = zip(*(x.split(CHUNK, dim=1) for x in tokens), strict=True)
    return torch.cat([apply(*part) for part in parts], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, lengths: Sequence[int]) -> Tensor:
    """Layer norm without weights, then scale and shift. See `by_segment`; x: (b n d)."""
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return by_segment(lambda x, shift, scale: torch.addcmul(shift, x, 1 + scale), lengths, [normed], [shift, scale])


def add_gated(x: Tensor, gate: Tensor, update: Tensor, lengths: Sequence[int]) -> Tensor:
    """x + gate * update. See `by_segment`; x, update: (b n d)."""
    return by_segment(lambda x, update, gate: torch.addcmul(x, gate, update), lengths, [x, update], [gate])


def by_segment(
    apply: Callable[..., Tensor], lengths: Sequence[int], tokens: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Tensor:
    """Apply something to segments of tokens (b n d) that share a vector each, without a vector for every token.

    Args:
        apply: takes each of `tokens`, cut to a segment, then that segment's entry of each of `vectors`, (b 1 d).
        lengths: tokens of each segment; together n.
        tokens: (b n d) each.
        vectors: (b s d) each, s the number of segments.
    """
    if len(lengths) == 1:
        return apply(*tokens, *vectors)
    cut = [x.split(list(lengths), dim=1) for x in tokens] + [x.split(1, dim=1) for x in vectors]
    return torch.cat([apply(*parts) for parts in zip(*cut, strict=True)], dim=1)
