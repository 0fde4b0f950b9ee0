"""Layers that the transformers share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import DiTConfig
from pyramid_model.dit.attention import QKV, add_gated, in_chunks, modulate
from pyramid_model.dit.memory import BlockMemory
from pyramid_model.dit.packing import Packing

FLOAT16_MAX = 65504


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, gelu: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        x = self.fc1(x)
        return self.fc2(F.gelu(x, approximate="tanh") if self.gelu else F.silu(x))


class AttentionInput(nn.Module):
    """How tokens enter attention: modulation, projections, and the norms of queries and keys.

    Args:
        config: sizes.
        num_modulations: vectors made from the conditioning, shift and scale among them.
        qk_eps: epsilon of the norms.
    """

    def __init__(self, config: DiTConfig, num_modulations: int, qk_eps: float):
        super().__init__()
        dim = config.dim
        self.num_heads, self.num_modulations = config.num_heads, num_modulations
        self.modulation = nn.Linear(dim, num_modulations * dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(config.head_dim, eps=qk_eps) for _ in range(2))

    def modulations(self, cond: Tensor) -> tuple[Tensor, ...]:
        """Vectors for each segment of the tokens, (b s d) each. cond: (b s d) after silu."""
        return self.modulation(cond).chunk(self.num_modulations, dim=-1)

    def qkv(self, x: Tensor) -> QKV:
        """Modulated tokens (b n d) -> normalised queries and keys, and values."""
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


class Stream(AttentionInput):
    """One side, image or text, of a double block: its own norm, projections and MLP."""

    def __init__(self, config: DiTConfig, qk_eps: float):
        super().__init__(config, num_modulations=6, qk_eps=qk_eps)
        self.to_out = nn.Linear(config.dim, config.dim)
        self.mlp = MLP(config.dim, 4 * config.dim, config.dim, gelu=True)

    def enter(self, x: Tensor, cond: Tensor, lengths: Sequence[int]) -> tuple[QKV, list[Tensor]]:
        """Tokens (b n d) -> what they bring to attention, and the modulations that `leave` takes.

        cond: a vector a segment (b s d); lengths: tokens of each segment.
        """
        shift, scale, *rest = self.modulations(cond)
        return self.qkv(modulate(x, shift, scale, lengths)), rest

    def leave(self, x: Tensor, attended: Tensor, rest: list[Tensor], lengths: Sequence[int]) -> Tensor:
        """Tokens and what they found, both (b n d) -> tokens after attention and MLP."""
        gate, mlp_shift, mlp_scale, mlp_gate = rest
        x = add_gated(x, gate, self.to_out(attended), lengths)
        update = in_chunks(self.mlp, modulate(x, mlp_shift, mlp_scale, lengths))
        return add_gated(x, mlp_gate, update, lengths)


class DoubleBlock(nn.Module):
    """Image and text tokens attend together, each with their own weights."""

    def __init__(self, config: DiTConfig, qk_eps: float):
        super().__init__()
        self.image, self.text = Stream(config, qk_eps), Stream(config, qk_eps)

    def forward(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, memory: BlockMemory | None = None
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens after the block.

        Args:
            image, text: tokens of all columns, (b n d).
            cond: timestep and text summary of each segment, after silu, (b s d).
            packing: layout of the tokens.
            memory: this block's keys and values of the tokens before these, if there are any.
        """
        image_qkv, image_rest = self.image.enter(image, cond, packing.image_segments)
        if not packing.num_text:  # it is in memory
            image_attended = packing.attend(image_qkv, memory)
            return self.image.leave(image, image_attended, image_rest, packing.image_segments), text
        text_qkv, text_rest = self.text.enter(text, cond, packing.text_segments)
        text_attended, image_attended = joint_attention(text_qkv, image_qkv, packing, memory)
        image = self.image.leave(image, image_attended, image_rest, packing.image_segments)
        text = self.text.leave(text, text_attended, text_rest, packing.text_segments)
        if text.dtype == torch.float16:
            text = text.clamp(-FLOAT16_MAX, FLOAT16_MAX)  # as published: the text of trained models overflows first
        return image, text


def joint_attention(text: QKV, image: QKV, packing: Packing, memory: BlockMemory | None) -> tuple[Tensor, Tensor]:
    """Each column's text and image tokens attend together; what either found, (b n h*d)."""
    q, k, v = (packing.join(t, i) for t, i in zip(text, image, strict=True))
    return packing.split(packing.attend((q, k, v), memory))
