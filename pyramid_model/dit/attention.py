"""Attention of a packed sequence, and the token operations that every DiT block shares."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from pyramid_model.dit.packing import Packing
from pyramid_model.dit.rope import rotate


def packed_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, masks: list[Tensor | None]) -> Tensor:
    """Each column attends within itself. q, k, v: joined sequence (b h n d), before rotation -> (b n h*d)."""
    q, k = rotate(q, packing.rotation), rotate(k, packing.rotation)
    columns = zip(*(x.split(packing.lengths, dim=2) for x in (q, k, v)), masks, strict=True)
    out = [F.scaled_dot_product_attention(q_c, k_c, v_c, attn_mask=mask) for q_c, k_c, v_c, mask in columns]
    return rearrange(torch.cat(out, dim=2) if len(out) > 1 else out[0], "b h n d -> b n (h d)")


def heads(x: Tensor, num_heads: int) -> Tensor:
    """(b n h*d) -> (b h n d)."""
    return rearrange(x, "b n (h d) -> b h n d", h=num_heads)


def per_token(values: Tensor, lengths: list[int] | tuple[int, ...]) -> Tensor:
    """Values of each column (b g d), laid out for its tokens: (b n d), or (b 1 d) where one column has them all."""
    if len(lengths) == 1:
        return values
    return torch.repeat_interleave(values, torch.tensor(lengths, device=values.device), dim=1, output_size=sum(lengths))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then scale and shift. x: (b n d); shift, scale: (b n d) or (b 1 d)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
