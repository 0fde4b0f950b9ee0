"""Attention in a sequence in which several branches continue one shared part.

The tokens of a branch attend to the start of the shared part and to their own branch, up to the end of their own frame.
So the keys of a frame are two ranges of the sequence, and one unmasked call for each frame computes nothing in vain. In
a short sequence one call with a mask is faster, and on a GPU one call of FlexAttention, which skips blocks of pairs
without an allowed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyramid_model.dit.attention import MAX_MASKED, by_padding, without_padding


@dataclass(frozen=True)
class Span:
    """Queries of consecutive tokens that attend to the same keys.

    start, stop: range of the queries; its tokens are keys too.
    num_shared: tokens at the start of the sequence that they attend to.
    begin: first token of the rest of the keys, which end at `stop`.
    """

    start: int
    stop: int
    num_shared: int
    begin: int


def branch_attention(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], pads: Sequence[int]) -> Tensor:
    """Attention of each span to its keys, in one call for each span.

    Args:
        q, k, v: of all tokens, (b n h d) each.
        spans: consecutive ranges that cover all tokens. The first one contains the padding.
        pads: number of padding tokens at the start of each sample's sequence. No query attends to padding, and the
            attention output of padding is zero.

    Returns:
        (b n h*d).
    """
    return by_padding(lambda q, k, v, pad: _attend_spans(q, k, v, spans, pad), q, k, v, pads)


def _attend_spans(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], pad: int) -> Tensor:
    """`branch_attention` of samples that all have `pad` padding tokens; q, k, v: (b h n d)."""
    outputs = [q.new_zeros(q.shape[0], pad, q.shape[1] * q.shape[3])] if pad else []
    for span in spans:
        keys, values = (_of_span(x, span, pad) for x in (k, v))
        out = F.scaled_dot_product_attention(q[:, :, max(pad, span.start) : span.stop], keys, values)
        outputs.append(out.transpose(1, 2).flatten(2))
    return torch.cat(outputs, dim=1)


def _of_span(x: Tensor, span: Span, pad: int) -> Tensor:
    """Keys or values of a span, (b h n d)."""
    own = x[:, :, max(pad, span.begin) : span.stop]
    return torch.cat([x[:, :, pad : span.num_shared], own], dim=2) if span.num_shared else own


def branch_mask(spans: Sequence[Span], pads: Sequence[int]) -> Tensor | None:
    """Mask with which one call computes the same as `branch_attention`; None for a long sequence.

    Returns:
        (1 or b, 1, n, n) bool, True where a query attends to a key; see `attention.frame_mask`.
    """
    if spans[-1].stop > MAX_MASKED:
        return None
    key, bounds = torch.arange(spans[-1].stop), bounds_of_queries(spans)
    allowed = _allowed(bounds, key[:, None], key)
    if not any(pads):
        return allowed[None, None]
    real = key >= torch.tensor(pads)[:, None, None]  # (b 1 n)
    return ((allowed & real) | ~real.transpose(1, 2))[:, None]  # padding attends to everything, see `frame_mask`


def bounds_of_queries(spans: Sequence[Span]) -> Tensor:
    """num_shared, begin and stop of the span of each query, (3 n)."""
    lengths = torch.tensor([span.stop - span.start for span in spans])
    return torch.tensor([[s.num_shared, s.begin, s.stop] for s in spans]).T.repeat_interleave(lengths, dim=1)


def _allowed(bounds: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether queries attend to keys, both given by their index in the sequence; bounds: see `bounds_of_queries`."""
    num_shared, begin, stop = bounds
    return (key < num_shared[query]) | ((key >= begin[query]) & (key < stop[query]))


def flex_mask(spans: Sequence[Span], pads: Sequence[int], device: torch.device) -> Any:
    """`BlockMask` of FlexAttention with which `flex_attention` computes the same as `branch_attention`."""
    from torch.nn.attention.flex_attention import create_block_mask

    bounds, starts = bounds_of_queries(spans).to(device), torch.tensor(pads, device=device)

    def mask(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _allowed(bounds, query, key) & ((key >= starts[sample]) | (query < starts[sample]))

    length, compiled = spans[-1].stop, device.type == "cuda"  # not compiled, it makes a mask of all pairs
    return create_block_mask(mask, len(pads), None, length, length, device=str(device), _compile=compiled)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, pads: Sequence[int]) -> Tensor:
    """As `branch_attention`, in one call with the mask of `flex_mask`."""
    call = _compiled() if q.is_cuda else _flex_attention()
    out = call(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=block_mask)
    return without_padding(out.transpose(1, 2).flatten(2), pads)


def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention as call

    return call


@cache
def _compiled() -> Any:
    return torch.compile(_flex_attention())
