"""Layout of the token sequence that is made from clips of several resolutions.

A column holds the clips for one prediction: history clips, coarse to fine, then the noisy clip. Its tokens are
[text | clip 0 | clip 1 | ... | noisy clip], each clip in raster order of t, h, w. Every sample of a batch has the same
columns. Their sequences are concatenated, so that one matrix product computes all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pyramid_model.config import PATCH
from pyramid_model.dit.attention import QKV, frame_attention, frame_mask, masked_attention
from pyramid_model.dit.branch_attention import Span, branch_attention, flex_attention
from pyramid_model.dit.kv_cache import BlockKVCache
from pyramid_model.dit.rope import rotate, rotation_table

Size = tuple[int, int, int]  # t, h, w of a clip in latents


@dataclass(frozen=True)
class Packing:
    """Layout of the tokens of a batch of columns.

    If a KV cache holds the keys and values of the text and of the first frames, the layout covers only the tokens after
    them.

    num_text: text tokens of each column.
    num_history, num_noisy: image tokens of each column, in its history clips and in its noisy clip.
    ends: for each column, the index of the token after each frame, in the column's whole sequence. Text and first frame
        attend to each other, so they share one entry. A model that is not causal has a single entry.
    rotation: rotary table of the joined sequence, (n 1 d/2) complex64, on the device of the tokens.
    clean_history: text and history have modulations of their own, apart from the noisy clip's.
    pads: for each column, the number of padding tokens at the start of each sample's text.
    cache_tokens: tokens at the start of the column that the KV cache must hold after the call.
    masks: for each column, the mask with which its attention is one call, a tensor or a `BlockMask` of FlexAttention;
        None: one call for each frame.
    num_branches: noisy clips of each column; empty: one each. `num_history` and `num_noisy` have an entry for each
        noisy clip. The history of a column's first noisy clip contains the clip that its branches share.
    spans: keys of each column's tokens in place of `ends`; empty for a column with one noisy clip. See `branches`.
    """

    num_text: int
    num_history: tuple[int, ...]
    num_noisy: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    rotation: Tensor
    clean_history: bool = False
    pads: tuple[tuple[int, ...], ...] = ()
    cache_tokens: int = 0
    masks: tuple[Any, ...] = ()
    num_branches: tuple[int, ...] = ()
    spans: tuple[tuple[Span, ...], ...] = ()

    @cached_property
    def num_image(self) -> list[int]:
        """Image tokens of each noisy clip with its history."""
        return [history + noisy for history, noisy in zip(self.num_history, self.num_noisy, strict=True)]

    @cached_property
    def num_texts(self) -> list[int]:
        """Text tokens before each noisy clip: those of its column for the first noisy clip of the column, else 0."""
        branches = self.num_branches or [1] * len(self.num_noisy)
        return [0 if index else self.num_text for number in branches for index in range(number)]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each column in the joined sequence."""
        of_noisy = [text + image for text, image in zip(self.num_texts, self.num_image, strict=True)]
        if not self.num_branches:
            return of_noisy
        bounds = accumulate(self.num_branches, initial=0)
        return [sum(of_noisy[start:stop]) for start, stop in pairwise(bounds)]

    @cached_property
    def image_segments(self) -> list[int]:
        """Number of image tokens in each segment; the tokens of a segment share one modulation."""
        return self._segments(self.num_history, self.num_noisy)

    @cached_property
    def text_segments(self) -> list[int]:
        """Number of text tokens in each segment."""
        return self._segments(self.num_texts, [0] * len(self.num_noisy))

    @cached_property
    def joined_segments(self) -> list[int]:
        """Number of tokens of the joined sequence in each segment."""
        before = [text + history for text, history in zip(self.num_texts, self.num_history, strict=True)]
        return self._segments(before, self.num_noisy)

    def _segments(self, before: Sequence[int], noisy: Sequence[int]) -> list[int]:
        pairs = zip(before, noisy, strict=True)
        return [n for pair in pairs for n in pair] if self.clean_history else [sum(pair) for pair in pairs]

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """Text and image tokens (b n …) of all columns -> [text 0 | image 0 | text 1 | image 1 | ...]."""
        if not self.num_text:
            return image
        if len(self.num_image) == 1:
            return torch.cat([text, image], dim=1)
        texts, images = text.split(self.num_texts, dim=1), image.split(self.num_image, dim=1)
        return torch.cat([part for pair in zip(texts, images, strict=True) for part in pair], dim=1)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `join`: (text, image)."""
        sizes = [size for pair in zip(self.num_texts, self.num_image, strict=True) for size in pair]
        parts = joined.split(sizes, dim=1)
        if len(parts) == 2:
            return parts[0], parts[1]
        return torch.cat(parts[::2], dim=1), torch.cat(parts[1::2], dim=1)

    def noisy(self, image: Tensor) -> list[Tensor]:
        """Tokens of each noisy clip, cut out of the image tokens (b n d) of all columns."""
        columns = image.split(self.num_image, dim=1)
        return [column[:, -n:] for column, n in zip(columns, self.num_noisy, strict=True)]

    def noisy_segments(self, vectors: Tensor) -> Tensor:
        """Vectors of the g noisy clips, (b g d), out of the vectors of all segments, (b s d)."""
        return vectors[:, 1::2] if self.clean_history else vectors

    def attend(self, qkv: QKV, kv_cache: BlockKVCache | None) -> Tensor:
        """Attention within each column, over its own tokens and those in the KV cache.

        Args:
            qkv: of the joined sequence, (b n h d) each, before rotation.
            kv_cache: of the only column; extended in place as `cache_tokens` says.

        Returns:
            (b n h*d).
        """
        q, k, v = rotate(qkv[0], self.rotation), rotate(qkv[1], self.rotation), qkv[2]
        if kv_cache is not None:
            k, v = kv_cache.extend(k, v, self.cache_tokens)
            return self._attend_column(0, q, k, v)
        columns = zip(*(x.split(self.lengths, dim=1) for x in (q, k, v)), strict=True)
        outputs = [self._attend_column(number, *column) for number, column in enumerate(columns)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _attend_column(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask, pads = self.masks[number], self.pads[number]
        spans = self.spans[number] if self.spans else ()
        if isinstance(mask, Tensor):
            return masked_attention(q, k, v, mask, pads)
        if not spans:
            return frame_attention(q, k, v, self.ends[number], pads)
        if mask is None:
            return branch_attention(q, k, v, spans, pads)
        return flex_attention(q, k, v, mask, pads)


@lru_cache(maxsize=64)
def make_packing(
    columns: tuple[tuple[Size, ...], ...],
    num_valid: tuple[int, ...],
    rope_axes: tuple[int, ...],
    causal: bool,
    clean_history: bool,
    device: torch.device,
    first_frame: int = 0,
    num_cached: int = 0,
    mode: object = None,
) -> Packing:
    """Layout for columns of clips of the given sizes; the last clip of each column is the noisy one.

    Args:
        columns: sizes of each column's clips.
        num_valid: text tokens of each row, padding not counted; row = sample * number of columns + column.
        rope_axes: channels of a head that are rotated by t, h and w.
        causal: whether a frame attends to itself and earlier frames only.
        clean_history: text and history have modulations of their own.
        device: of the tokens.
        first_frame: first frame of the only column that is computed. The KV cache holds the text and earlier frames.
        num_cached: frames of the only column that the KV cache must hold after the call.
        mode: the `FakeTensorMode` of the tokens, if they are fake. Part of the cache key, since a layout made of fake
            tensors cannot serve real ones.
    """
    num_text = max(num_valid)
    packing = _packing(columns, num_text, rope_axes, causal, clean_history, device, first_frame, mode)
    pads = tuple(tuple(num_text - n for n in num_valid[i :: len(columns)]) for i in range(len(columns)))
    with torch.inference_mode(False):  # the layout is cached, and a later call may need gradients
        masks = tuple(
            frame_mask(ends, column_pads, ends[-1] - length)
            for ends, column_pads, length in zip(packing.ends, pads, packing.lengths, strict=True)
        )
    masks = tuple(None if mask is None else mask.to(device) for mask in masks)
    cache_tokens = packing.ends[0][num_cached - 1] if num_cached else 0
    return replace(packing, pads=pads, masks=masks, cache_tokens=cache_tokens)


@lru_cache(maxsize=128)
def _packing(
    columns: tuple[tuple[Size, ...], ...],
    num_text: int,
    rope_axes: tuple[int, ...],
    causal: bool,
    clean_history: bool,
    device: torch.device,
    first_frame: int,
    mode: object,
) -> Packing:
    """The part of `make_packing` that is slow and depends on sizes alone, not on the padding of each text."""
    ends = tuple(frame_ends(column, num_text) for column in columns)
    first = ends[0][first_frame - 1] if first_frame else 0
    positions = [torch.cat([torch.zeros(num_text, 3, dtype=torch.float64), clip_positions(c)]) for c in columns]
    noisy = tuple(tokens_of(column[-1]) for column in columns)
    computed_text = 0 if first_frame else num_text
    history = tuple(end[-1] - first - computed_text - n for end, n in zip(ends, noisy, strict=True))
    with torch.inference_mode(False):  # the layout is cached, and a later call may need gradients
        rotation = rotation_table(torch.cat(positions)[first:], rope_axes).to(device)
    return Packing(
        num_text=computed_text,
        num_history=history,
        num_noisy=noisy,
        ends=ends if causal else tuple(end[-1:] for end in ends),
        rotation=rotation,
        clean_history=clean_history,
    )


def frame_ends(column: tuple[Size, ...], num_text: int) -> tuple[int, ...]:
    """Number of tokens of a column up to the end of each latent frame, the text included."""
    tokens = [num_text, *(tokens_of((1, h, w)) for t, h, w in column for _ in range(t))]
    return tuple(accumulate(tokens))[1:]


def tokens_of(size: Size) -> int:
    """Number of tokens of a clip."""
    t, h, w = size
    return t * (h // PATCH) * (w // PATCH)


def clip_positions(column: tuple[Size, ...], first_frame: int = 0) -> Tensor:
    """Coordinates (t, h, w) of a column's image tokens, in patches of the noisy clip; (n 3) float64.

    t counts frames through all clips, from `first_frame`. A history clip of another resolution shows the same picture,
    so each of its patches gets the centre of the area that it covers: two patches that cover four lie at 0.5 and 2.5.
    """
    _, noisy_h, noisy_w = column[-1]
    parts, start = [], first_frame
    for t, h, w in column:
        time = torch.arange(start, start + t, dtype=torch.float64)
        rows, cols = patch_centres(h // PATCH, noisy_h // PATCH), patch_centres(w // PATCH, noisy_w // PATCH)
        parts.append(rearrange(torch.stack(torch.meshgrid(time, rows, cols, indexing="ij")), "a t h w -> (t h w) a"))
        start += t
    return torch.cat(parts)


def patch_centres(num: int, of: int) -> Tensor:
    """Centres of `num` equal parts of an axis of `of` patches, clamped to 0 .. of-1; (num,) float64."""
    centres = (torch.arange(num, dtype=torch.float64) + 0.5) * (of / num) - 0.5
    return centres.clamp(0, of - 1)


def without_first_frames(clips: Sequence[Tensor], num_frames: int) -> list[Tensor]:
    """Consecutive clips (b c t h w) without the first `num_frames` of all their frames; empty clips are omitted."""
    starts = accumulate((clip.shape[2] for clip in clips), initial=0)
    cut_clips = [clip[:, :, max(0, num_frames - start) :] for clip, start in zip(clips, starts, strict=False)]
    return [clip for clip in cut_clips if clip.shape[2]]


def patchify(clip: Tensor) -> Tensor:
    """Latents (b c t h w) -> tokens (b n d), one for each 2x2 patch; the channel is the fastest axis of d."""
    return rearrange(clip, "b c t (h p) (w q) -> b (t h w) (p q c)", p=PATCH, q=PATCH)


def unpatchify(tokens: Tensor, size: Size) -> Tensor:
    """Inverse of `patchify`; size: (t h w) of the clip in latents."""
    t, h, w = size
    return rearrange(
        tokens, "b (t h w) (p q c) -> b c t (h p) (w q)", t=t, h=h // PATCH, w=w // PATCH, p=PATCH, q=PATCH
    )
