"""Layers that the transformers share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import DiTConfig
from pyramid_model.dit.attention import heads, modulate, packed_attention, per_token
from pyramid_model.dit.packing import Packing

QKV = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, each (b h n d)


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

    def modulations(self, cond: Tensor, lengths: list[int] | tuple[int, ...]) -> tuple[Tensor, ...]:
        """Each (b n d), or (b 1 d) for one column. cond: (b g d) after silu; lengths: tokens of each column."""
        return per_token(self.modulation(cond), lengths).chunk(self.num_modulations, dim=-1)

    def qkv(self, x: Tensor) -> QKV:
        """Modulated tokens (b n d) -> normalised queries and keys, and values."""
        q, k, v = (heads(project(x), self.num_heads) for project in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


class Stream(AttentionInput):
    """One side, image or text, of a double block: its own norm, projections and MLP."""

    def __init__(self, config: DiTConfig, qk_eps: float):
        super().__init__(config, num_modulations=6, qk_eps=qk_eps)
        self.to_out = nn.Linear(config.dim, config.dim)
        self.mlp = MLP(config.dim, 4 * config.dim, config.dim, gelu=True)

    def enter(self, x: Tensor, cond: Tensor, lengths: list[int] | tuple[int, ...]) -> tuple[QKV, list[Tensor]]:
        """Tokens (b n d) -> what they bring to attention, and the modulations that `leave` takes."""
        shift, scale, *rest = self.modulations(cond, lengths)
        return self.qkv(modulate(x, shift, scale)), rest

    def leave(self, x: Tensor, attended: Tensor, rest: list[Tensor]) -> Tensor:
        """Tokens and what they found, both (b n d) -> tokens after attention and MLP."""
        gate, mlp_shift, mlp_scale, mlp_gate = rest
        x = x + gate * self.to_out(attended)
        return x + mlp_gate * self.mlp(modulate(x, mlp_shift, mlp_scale))


class DoubleBlock(nn.Module):
    """Image and text tokens attend together, each with their own weights."""

    def __init__(self, config: DiTConfig, qk_eps: float):
        super().__init__()
        self.image, self.text = Stream(config, qk_eps), Stream(config, qk_eps)

    def forward(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, masks: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """image, text: tokens of all columns (b n d); cond: timestep and text summary after silu (b g d)."""
        image_qkv, image_rest = self.image.enter(image, cond, packing.num_image)
        text_qkv, text_rest = self.text.enter(text, cond, packing.text_lengths)
        text_attended, image_attended = joint_attention(text_qkv, image_qkv, packing, masks)
        return self.image.leave(image, image_attended, image_rest), self.text.leave(text, text_attended, text_rest)


def joint_attention(text: QKV, image: QKV, packing: Packing, masks: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Each column's text and image tokens attend together; what either found, (b n h*d)."""
    q, k, v = (packing.join(t, i) for t, i in zip(text, image, strict=True))
    return packing.split(packed_attention(q, k, v, packing, masks))
