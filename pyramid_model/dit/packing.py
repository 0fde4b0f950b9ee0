"""How clips of several resolutions become one token sequence.

A column is what the DiT predicts from: history clips, coarse to fine, then the noisy clip. Its tokens are
[text | clip 0 | clip 1 | ... | noisy clip], each clip in raster order of t, h, w. A batch holds the same columns for
every sample; their sequences follow each other, so that one matrix product serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from einops import rearrange
from torch import Tensor

from pyramid_model.dit.attention import QKV, frame_attention
from pyramid_model.dit.memory import BlockMemory
from pyramid_model.dit.rope import rotate, rotation_table

PATCH = 2

Size = tuple[int, int, int]  # t, h, w of a clip in latents


@dataclass(frozen=True)
class Packing:
    """Layout of the tokens of a batch of columns.

    Where the text and the first frames of a column are remembered from an earlier call, the layout has the tokens
    after them only.

    num_text: text tokens a column.
    num_history, num_noisy: image tokens of each column, of its history clips and of its noisy clip.
    ends: per column, where its frames end in its whole sequence. The text ends with the first frame, since both see
        each other. One end where every token sees every other.
    rotation: rotary table of the joined sequence (n 1 d/2), on the device of the tokens.
    clean_history: text and history have a modulation of their own.
    pads: per column, padded tokens at the start of each sample's text.
    keep: tokens of the column to be remembered by this call.
    """

    num_text: int
    num_history: tuple[int, ...]
    num_noisy: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    rotation: Tensor
    clean_history: bool = False
    pads: tuple[tuple[int, ...], ...] = ()
    keep: int = 0

    @cached_property
    def num_image(self) -> list[int]:
        """Image tokens of each column."""
        return [history + noisy for history, noisy in zip(self.num_history, self.num_noisy, strict=True)]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each column in the joined sequence."""
        return [self.num_text + n for n in self.num_image]

    @cached_property
    def image_segments(self) -> list[int]:
        """Image tokens that share a modulation."""
        return self._segments(self.num_history, self.num_noisy)

    @cached_property
    def text_segments(self) -> list[int]:
        """Text tokens that share a modulation."""
        return self._segments([self.num_text] * len(self.num_noisy), [0] * len(self.num_noisy))

    @cached_property
    def joined_segments(self) -> list[int]:
        """Tokens of the joined sequence that share a modulation."""
        return self._segments([self.num_text + n for n in self.num_history], self.num_noisy)

    def _segments(self, before: Sequence[int], noisy: Sequence[int]) -> list[int]:
        pairs = zip(before, noisy, strict=True)
        return [n for pair in pairs for n in pair] if self.clean_history else [sum(pair) for pair in pairs]

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """Text and image tokens (b n …) of all columns -> [text 0 | image 0 | text 1 | image 1 | ...]."""
        if not self.num_text:
            return image
        if len(self.num_image) == 1:
            return torch.cat([text, image], dim=1)
        texts, images = text.split(self.num_text, dim=1), image.split(self.num_image, dim=1)
        return torch.cat([part for pair in zip(texts, images, strict=True) for part in pair], dim=1)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `join`."""
        sizes = [size for n in self.num_image for size in (self.num_text, n)]
        parts = joined.split(sizes, dim=1)
        if len(parts) == 2:
            return parts[0], parts[1]
        return torch.cat(parts[::2], dim=1), torch.cat(parts[1::2], dim=1)

    def noisy(self, image: Tensor) -> list[Tensor]:
        """The noisy clip's tokens of each column, from image tokens (b n d)."""
        columns = image.split(self.num_image, dim=1)
        return [column[:, -n:] for column, n in zip(columns, self.num_noisy, strict=True)]

    def noisy_segments(self, vectors: Tensor) -> Tensor:
        """Of vectors a segment (b s d), those of the noisy clips, (b g d)."""
        return vectors[:, 1::2] if self.clean_history else vectors

    def attend(self, qkv: QKV, memory: BlockMemory | None) -> Tensor:
        """What the tokens of each column find among themselves and in memory; joined (b n h d) -> (b n h*d)."""
        q, k, v = rotate(qkv[0], self.rotation), rotate(qkv[1], self.rotation), qkv[2]
        if memory is not None:
            k, v = memory.extend(k, v, self.keep)
            return frame_attention(q, k, v, self.ends[0], self.pads[0])
        columns = zip(*(x.split(self.lengths, dim=1) for x in (q, k, v)), self.ends, self.pads, strict=True)
        found = [frame_attention(*column) for column in columns]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


@lru_cache(maxsize=1024)
def make_packing(
    columns: tuple[tuple[Size, ...], ...],
    num_valid: tuple[int, ...],
    rope_axes: tuple[int, ...],
    causal: bool,
    clean_history: bool,
    device: torch.device,
    known: int = 0,
    remember: int = 0,
    mode: object = None,
) -> Packing:
    """Layout for columns of clips of the given sizes, the last clip of each being the noisy one.

    Args:
        columns: sizes of each column's clips.
        num_valid: text tokens that are no padding of each row; row = sample * number of columns + column.
        rope_axes: channels of a head that are turned by t, h and w.
        causal: whether a frame sees itself and earlier ones only.
        clean_history: text and history have a modulation of their own.
        device: of the tokens.
        known: frames at the start of the only column that are in memory, and the text with them.
        remember: frames that are to be in memory after this call.
        mode: the `FakeTensorMode` of tokens without content. A layout made there is of no use to anybody else.
    """
    num_text = max(num_valid)
    packing = _packing(columns, num_text, rope_axes, causal, clean_history, device, known, mode)
    pads = tuple(tuple(num_text - n for n in num_valid[i :: len(columns)]) for i in range(len(columns)))
    return replace(packing, pads=pads, keep=packing.ends[0][remember - 1] if remember else 0)


@lru_cache(maxsize=128)
def _packing(
    columns: tuple[tuple[Size, ...], ...],
    num_text: int,
    rope_axes: tuple[int, ...],
    causal: bool,
    clean_history: bool,
    device: torch.device,
    known: int,
    mode: object,
) -> Packing:
    """`make_packing` by sizes alone: the part that takes time and memory, which many lengths of text share."""
    ends = tuple(frame_ends(column, num_text) for column in columns)
    first = ends[0][known - 1] if known else 0
    positions = [torch.cat([torch.zeros(num_text, 3, dtype=torch.float64), clip_positions(c)]) for c in columns]
    noisy = tuple(tokens_of(column[-1]) for column in columns)
    num_text_left = 0 if known else num_text
    history = tuple(end[-1] - first - num_text_left - n for end, n in zip(ends, noisy, strict=True))
    with torch.inference_mode(False):  # later calls may want a gradient, whatever this one wants
        rotation = rotation_table(torch.cat(positions)[first:], rope_axes).to(device)
    return Packing(
        num_text=num_text_left,
        num_history=history,
        num_noisy=noisy,
        ends=ends if causal else tuple(end[-1:] for end in ends),
        rotation=rotation,
        clean_history=clean_history,
    )


def frame_ends(column: tuple[Size, ...], num_text: int) -> tuple[int, ...]:
    """Tokens of a column up to the end of each latent frame, the text included."""
    tokens = [num_text, *(tokens_of((1, h, w)) for t, h, w in column for _ in range(t))]
    return tuple(accumulate(tokens))[1:]


def tokens_of(size: Size) -> int:
    """Tokens of a clip."""
    t, h, w = size
    return t * (h // PATCH) * (w // PATCH)


def clip_positions(column: tuple[Size, ...]) -> Tensor:
    """Coordinates (t, h, w) of a column's image tokens, in patches of the noisy clip; (n 3) float64.

    Time counts frames through all clips. A history clip of another resolution covers the same picture, so its patches
    sit at the centres of the areas they cover: two patches for four are at 0.5 and 2.5.
    """
    _, noisy_h, noisy_w = column[-1]
    parts, start = [], 0
    for t, h, w in column:
        time = torch.arange(start, start + t, dtype=torch.float64)
        rows, cols = patch_centres(h // PATCH, noisy_h // PATCH), patch_centres(w // PATCH, noisy_w // PATCH)
        parts.append(rearrange(torch.stack(torch.meshgrid(time, rows, cols, indexing="ij")), "a t h w -> (t h w) a"))
        start += t
    return torch.cat(parts)


def patch_centres(num: int, of: int) -> Tensor:
    """Centres of `num` equal parts of the axis 0 .. of-1, kept inside it; (num,) float64."""
    centres = (torch.arange(num, dtype=torch.float64) + 0.5) * (of / num) - 0.5
    return centres.clamp(0, of - 1)


def without_first_frames(clips: Sequence[Tensor], num_frames: int) -> list[Tensor]:
    """Clips (b c t h w) that follow one another, the first frames left out."""
    starts = accumulate((clip.shape[2] for clip in clips), initial=0)
    left = [clip[:, :, max(0, num_frames - start) :] for clip, start in zip(clips, starts, strict=False)]
    return [clip for clip in left if clip.shape[2]]


def patchify(clip: Tensor) -> Tensor:
    """Latents (b c t h w) -> tokens (b n d), each a 2x2 patch with the channel running fastest."""
    return rearrange(clip, "b c t (h p) (w q) -> b (t h w) (p q c)", p=PATCH, q=PATCH)


def unpatchify(tokens: Tensor, size: Size) -> Tensor:
    """Inverse of `patchify`; size: (t h w) of the clip in latents."""
    t, h, w = size
    return rearrange(
        tokens, "b (t h w) (p q c) -> b c t (h p) (w q)", t=t, h=h // PATCH, w=w // PATCH, p=PATCH, q=PATCH
    )
