"""Frame-causal attention.

A mask over all pairs of tokens would need memory, prevent the use of fast kernels, and compute attention scores that it
then discards. Frames are in order, so the keys that a frame may attend to are always a prefix of the sequence. One
unmasked call for each frame gives the same result. In a short sequence the calls themselves take most of the time, so
there one call with a mask is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_MASKED = 1024  # tokens of the longest sequence that is computed in one call with a mask
CHUNK = 4096  # tokens for one call of `in_chunks`: enough to keep a GPU busy
QKV = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, each (b n h d)


def frame_attention(q: Tensor, k: Tensor, v: Tensor, ends: Sequence[int], pads: Sequence[int]) -> Tensor:
    """Attention in which the tokens of a frame attend to their own frame and to everything before it.

    Args:
        q: queries of the last n of N tokens, (b n h d).
        k, v: keys and values of all tokens, (b N h d).
        ends: index of the token after each frame, in the sequence of all N tokens. Frames that end before the first
            query are skipped.
        pads: number of padding tokens at the start of each sample's sequence, one entry for each sample. No query
            attends to padding, and the attention output of padding is zero.

    Returns:
        (b n h*d).
    """
    query_ends = [end for end in ends if end > k.shape[1] - q.shape[1]]
    return by_padding(lambda q, k, v, pad: _attend_frames(q, k, v, query_ends, pad), q, k, v, pads)


def by_padding(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, pads: Sequence[int]) -> Tensor:
    """Call `attend(q, k, v, pad=…)` for consecutive samples with the same padding.

    q, k, v: (b n h d) each; `attend` gets them as (b h n d). Returns its results, concatenated along b.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    outputs, first = [], 0
    for pad, samples in groupby(pads):
        stop = first + len(list(samples))
        outputs.append(attend(q[first:stop], k[first:stop], v[first:stop], pad=pad))
        first = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_frames(q: Tensor, k: Tensor, v: Tensor, ends: Sequence[int], pad: int) -> Tensor:
    """`frame_attention` of samples that all have `pad` padding tokens; q, k, v: (b h n d)."""
    first_query = start = k.shape[2] - q.shape[2]
    outputs = []
    for end in ends:
        begin = max(start, min(pad, end))
        queries = q[:, :, begin - first_query : end - first_query]
        out = F.scaled_dot_product_attention(queries, k[:, :, pad:end], v[:, :, pad:end])
        out = out.transpose(1, 2).flatten(2)
        outputs.append(F.pad(out, (0, 0, begin - start, 0)) if begin > start else out)
        start = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def frame_mask(ends: Sequence[int], pads: Sequence[int], first: int) -> Tensor | None:
    """Mask for `masked_attention` with which it computes the same as `frame_attention`; None if it would be slower.

    Args:
        ends, pads: as in `frame_attention`.
        first: index of the first query in the sequence of all N tokens.

    Returns:
        (1 or b, 1, n, N) bool, True where a query attends to a key; without padding, one mask serves all samples.
    """
    num_calls = len(set(pads)) * sum(end > first for end in ends)
    if ends[-1] > MAX_MASKED or num_calls == 1:
        return None
    token = torch.arange(ends[-1])
    frame_end = torch.tensor(ends)[torch.bucketize(token, torch.tensor(ends), right=True)]
    before_end = token < frame_end[first:, None]
    if not any(pads):
        return before_end[None, None]
    real = token >= torch.tensor(pads)[:, None, None]  # (b 1 N)
    # Padding attends to everything, since a row without keys would give NaN; `masked_attention` sets its output to 0.
    return ((before_end & real) | ~real.transpose(1, 2)[:, first:])[:, None]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pads: Sequence[int]) -> Tensor:
    """As `frame_attention`, in one call with the mask of `frame_mask`."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
    return without_padding(out.transpose(1, 2).flatten(2), pads, first=k.shape[1] - q.shape[1])


def without_padding(out: Tensor, pads: Sequence[int], first: int = 0) -> Tensor:
    """The attention output (b n d) with zeros at padding; first: index of its first token in the sequence."""
    if max(pads) <= first:
        return out
    token = torch.arange(first, first + out.shape[1], device=out.device)
    return out.masked_fill((token < torch.tensor(pads, device=out.device)[:, None])[..., None], 0)


def in_chunks(apply: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
    """Apply a token-wise function to tokens (b n …); without gradients, to `CHUNK` tokens at a time.

    This limits the memory of the widest activations, those inside a block's MLP. The result is the same.
    """
    if torch.is_grad_enabled() or tokens[0].shape[1] <= CHUNK:
        return apply(*tokens)
    parts = zip(*(x.split(CHUNK, dim=1) for x in tokens), strict=True)
    return torch.cat([apply(*part) for part in parts], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, lengths: Sequence[int]) -> Tensor:
    """Layer norm without weights, then scale and shift. x: (b n d); shift, scale: (b s d); see `by_segment`."""
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return by_segment(lambda x, shift, scale: torch.addcmul(shift, x, 1 + scale), lengths, [normed], [shift, scale])


def add_gated(x: Tensor, gate: Tensor, update: Tensor, lengths: Sequence[int]) -> Tensor:
    """x + gate * update. x, update: (b n d); gate: (b s d); see `by_segment`."""
    return by_segment(lambda x, update, gate: torch.addcmul(x, gate, update), lengths, [x, update], [gate])


def by_segment(
    apply: Callable[..., Tensor], lengths: Sequence[int], tokens: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Tensor:
    """Apply a function to each segment of tokens together with the vectors of that segment.

    Vectors are broadcast over a segment, so they need not be repeated for every token.

    Args:
        apply: takes each of `tokens`, sliced to one segment, then that segment's entry of each of `vectors`, (b 1 d).
        lengths: number of tokens in each segment; their sum is n. Segments without tokens are skipped.
        tokens: (b n d) each.
        vectors: (b s d) each, s the number of segments.

    Returns:
        The results of all segments, concatenated along n.
    """
    if len(lengths) == 1:
        return apply(*tokens, *vectors)
    segments = [x.split(list(lengths), dim=1) for x in tokens] + [x.split(1, dim=1) for x in vectors]
    pairs = list(zip(*segments, strict=True))
    filled = [pair for pair, n in zip(pairs, lengths, strict=True) if n]
    # A rank without any token computes an empty segment, so that all parameters have a gradient on every rank.
    return torch.cat([apply(*pair) for pair in filled or pairs[:1]], dim=1)
