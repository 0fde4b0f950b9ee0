"""Layers that miniFLUX and MMDiT share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import DiTConfig
from pyramid_model.dit.attention import QKV, add_gated, in_chunks, modulate
from pyramid_model.dit.kv_cache import BlockKVCache
from pyramid_model.dit.packing import Packing

FLOAT16_MAX = 65504


class MLP(nn.Module):
    """Two linear layers with an activation between them: SiLU, or tanh-approximated GELU."""

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
    """Layers before attention: modulation, query/key/value projections, and RMS norms of queries and keys.

    Args:
        config: sizes.
        num_modulations: number of vectors (shift, scale, gate, …) computed from the conditioning.
        qk_eps: epsilon of the RMS norms.
    """

    def __init__(self, config: DiTConfig, num_modulations: int, qk_eps: float):
        super().__init__()
        dim = config.dim
        self.num_heads, self.num_modulations = config.num_heads, num_modulations
        self.modulation = nn.Linear(dim, num_modulations * dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(config.head_dim, eps=qk_eps) for _ in range(2))

    def modulations(self, cond: Tensor) -> tuple[Tensor, ...]:
        """Modulation vectors of each segment, (b s d) each. cond: conditioning after SiLU, (b s d)."""
        return self.modulation(cond).chunk(self.num_modulations, dim=-1)

    def qkv(self, x: Tensor) -> QKV:
        """Modulated tokens (b n d) -> normalised queries, normalised keys, and values, (b n h d) each."""
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


class Stream(AttentionInput):
    """Weights of one modality, image or text, in a double block: modulation, projections and MLP."""

    def __init__(self, config: DiTConfig, qk_eps: float):
        super().__init__(config, num_modulations=6, qk_eps=qk_eps)
        self.to_out = nn.Linear(config.dim, config.dim)
        self.mlp = MLP(config.dim, 4 * config.dim, config.dim, gelu=True)

    def enter(self, x: Tensor, cond: Tensor, lengths: Sequence[int]) -> tuple[QKV, list[Tensor]]:
        """Queries, keys and values of the tokens, and the modulation vectors that `leave` needs.

        Args:
            x: residual stream, (b n d).
            cond: conditioning of each segment after SiLU, (b s d).
            lengths: number of tokens in each segment.
        """
        shift, scale, *later_modulations = self.modulations(cond)
        return self.qkv(modulate(x, shift, scale, lengths)), later_modulations

    def leave(self, x: Tensor, attended: Tensor, later_modulations: list[Tensor], lengths: Sequence[int]) -> Tensor:
        """Residual stream and attention output, both (b n d) -> residual stream after attention and MLP, (b n d)."""
        gate, mlp_shift, mlp_scale, mlp_gate = later_modulations
        x = add_gated(x, gate, self.to_out(attended), lengths)
        update = in_chunks(self.mlp, modulate(x, mlp_shift, mlp_scale, lengths))
        return add_gated(x, mlp_gate, update, lengths)


class DoubleBlock(nn.Module):
    """Joint attention of image and text tokens, with separate weights for the two modalities."""

    def __init__(self, config: DiTConfig, qk_eps: float):
        super().__init__()
        self.image, self.text = Stream(config, qk_eps), Stream(config, qk_eps)

    def forward(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, kv_cache: BlockKVCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens after the block.

        Args:
            image, text: tokens of all columns, (b n d).
            cond: embedding of timestep and pooled text of each segment, after SiLU, (b s d).
            packing: layout of the tokens.
            kv_cache: this block's keys and values of the tokens that precede these in the sequence, if any.

        Returns:
            (image, text), shapes as given.
        """
        image_qkv, image_modulations = self.image.enter(image, cond, packing.image_segments)
        if not packing.num_text:  # keys and values of the text are in the KV cache
            image_attended = packing.attend(image_qkv, kv_cache)
            return self.image.leave(image, image_attended, image_modulations, packing.image_segments), text
        text_qkv, text_modulations = self.text.enter(text, cond, packing.text_segments)
        text_attended, image_attended = joint_attention(text_qkv, image_qkv, packing, kv_cache)
        image = self.image.leave(image, image_attended, image_modulations, packing.image_segments)
        text = self.text.leave(text, text_attended, text_modulations, packing.text_segments)
        if text.dtype == torch.float16:
            # As in the published code: in trained models the text stream is the first to overflow.
            text = text.clamp(-FLOAT16_MAX, FLOAT16_MAX)
        return image, text


def joint_attention(text: QKV, image: QKV, packing: Packing, kv_cache: BlockKVCache | None) -> tuple[Tensor, Tensor]:
    """Attention over the joined text and image tokens of each column: (text output, image output), (b n h*d) each."""
    q, k, v = (packing.join(t, i) for t, i in zip(text, image, strict=True))
    return packing.split(packing.attend((q, k, v), kv_cache))
