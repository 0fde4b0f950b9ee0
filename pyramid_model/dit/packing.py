"""How clips of several resolutions become one token sequence.

A column is what the DiT predicts from: history clips, coarse to fine, then the noisy clip. Its tokens are
[text | clip 0 | clip 1 | ... | noisy clip], each clip in raster order of t, h, w. A batch holds the same columns for
every sample; their sequences follow each other, so that one matrix product serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from pyramid_model.dit.rope import rotation_table

PATCH = 2

Size = tuple[int, int, int]  # t, h, w of a clip in latents


@dataclass(frozen=True)
class Packing:
    """Layout of a batch of columns. Tensors live on the device of the tokens.

    num_text: text tokens a column.
    num_image: image tokens of each column.
    num_noisy: how many of those, at the end, belong to the noisy clip.
    rotation: rotary table of the joined sequence (2 n d/2).
    causal: per column (n n), True = may attend; None where every token sees every other.
    """

    num_text: int
    num_image: tuple[int, ...]
    num_noisy: tuple[int, ...]
    rotation: Tensor
    causal: tuple[Tensor | None, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each column in the joined sequence."""
        return [self.num_text + n for n in self.num_image]

    @property
    def text_lengths(self) -> list[int]:
        """Text tokens of each column."""
        return [self.num_text] * len(self.num_image)

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """Text and image tokens (..., n, d) of all columns -> [text 0 | image 0 | text 1 | image 1 | ...]."""
        if len(self.num_image) == 1:
            return torch.cat([text, image], dim=-2)
        texts, images = text.split(self.num_text, dim=-2), image.split(self.num_image, dim=-2)
        return torch.cat([part for pair in zip(texts, images, strict=True) for part in pair], dim=-2)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `join`."""
        sizes = [size for n in self.num_image for size in (self.num_text, n)]
        parts = joined.split(sizes, dim=-2)
        if len(parts) == 2:
            return parts[0], parts[1]
        return torch.cat(parts[::2], dim=-2), torch.cat(parts[1::2], dim=-2)

    def noisy(self, image: Tensor) -> list[Tensor]:
        """The noisy clip's tokens of each column, from image tokens (b n d)."""
        columns = image.split(self.num_image, dim=1)
        return [column[:, -n:] for column, n in zip(columns, self.num_noisy, strict=True)]

    def masks(self, text_mask: Tensor) -> list[Tensor | None]:
        """Attention mask of each column, (b 1 n n) or broadcastable; None where nothing is hidden.

        text_mask: True where a text token is real, (b g n_text). Padding is never attended to; what padded tokens
        themselves come to hold reaches no image token.
        """
        if text_mask.all():
            return list(self.causal)
        masks = []
        for column, causal in enumerate(self.causal):
            keys = torch.nn.functional.pad(text_mask[:, column], (0, self.num_image[column]), value=True)[:, None, None]
            masks.append(keys if causal is None else keys & causal)
        return masks


@lru_cache(maxsize=256)
def make_packing(
    columns: tuple[tuple[Size, ...], ...],
    num_text: int,
    rope_axes: tuple[int, ...],
    causal: bool,
    device: torch.device,
) -> Packing:
    """Layout for columns of clips of the given sizes, the last clip of each being the noisy one."""
    positions = [torch.cat([torch.zeros(num_text, 3, dtype=torch.float64), clip_positions(c)]) for c in columns]
    num_tokens = [[t * (h // PATCH) * (w // PATCH) for t, h, w in column] for column in columns]
    return Packing(
        num_text=num_text,
        num_image=tuple(sum(n) for n in num_tokens),
        num_noisy=tuple(n[-1] for n in num_tokens),
        rotation=rotation_table(torch.cat(positions), rope_axes).to(device),
        causal=tuple(causal_mask(p[:, 0].to(device)) if causal else None for p in positions),
    )


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


def causal_mask(time: Tensor) -> Tensor | None:
    """(n n), True where the key is not later than the query; None if all are of one time. time: (n,)."""
    return None if (time == time[0]).all() else time[:, None] >= time[None, :]


def patchify(clip: Tensor) -> Tensor:
    """Latents (b c t h w) -> tokens (b n d), each a 2x2 patch with the channel running fastest."""
    return rearrange(clip, "b c t (h p) (w q) -> b (t h w) (p q c)", p=PATCH, q=PATCH)


def unpatchify(tokens: Tensor, size: Size) -> Tensor:
    """Inverse of `patchify`; size: (t h w) of the clip in latents."""
    t, h, w = size
    return rearrange(
        tokens, "b (t h w) (p q c) -> b c t (h p) (w q)", t=t, h=h // PATCH, w=w // PATCH, p=PATCH, q=PATCH
    )
