"""miniFLUX: a small FLUX-like transformer that predicts the velocity of the noisy clip of each column."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import MiniFluxConfig
from pyramid_model.dit.attention import heads, modulate, packed_attention, per_token
from pyramid_model.dit.packing import PATCH, Packing, make_packing, patchify, unpatchify
from pyramid_model.text import TextFeatures

TIMESTEP_CHANNELS = 256


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


class Stream(nn.Module):
    """One side, image or text, of a double block: its own norm, projections and MLP."""

    def __init__(self, config: MiniFluxConfig):
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(config.head_dim, eps=1e-6) for _ in range(2))
        self.mlp = MLP(dim, 4 * dim, dim, gelu=True)

    def modulations(self, cond: Tensor, lengths: list[int] | tuple[int, ...]) -> tuple[Tensor, ...]:
        """shift, scale, gate of attention, then of the MLP. cond: (b g d) after silu."""
        return per_token(self.modulation(cond), lengths).chunk(6, dim=-1)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (b n d) -> normalised queries and keys, and values, each (b h n d)."""
        q, k, v = (heads(project(x), self.num_heads) for project in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


class DoubleBlock(nn.Module):
    """Image and text tokens attend together, each with their own weights."""

    def __init__(self, config: MiniFluxConfig):
        super().__init__()
        self.image, self.text = Stream(config), Stream(config)

    def forward(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, masks: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """image, text: tokens of all columns (b n d); cond: timestep and text summary after silu (b g d)."""
        text_lengths = [packing.num_text] * len(packing.num_image)
        i_shift, i_scale, i_gate, *i_mlp = self.image.modulations(cond, packing.num_image)
        t_shift, t_scale, t_gate, *t_mlp = self.text.modulations(cond, text_lengths)
        image_qkv = self.image.qkv(modulate(image, i_shift, i_scale))
        text_qkv = self.text.qkv(modulate(text, t_shift, t_scale))
        q, k, v = (packing.join(t, i) for t, i in zip(text_qkv, image_qkv, strict=True))
        text_attended, image_attended = packing.split(packed_attention(q, k, v, packing, masks))
        image = image + i_gate * self.image.to_out(image_attended)
        text = text + t_gate * self.text.to_out(text_attended)
        i_shift, i_scale, i_gate = i_mlp
        t_shift, t_scale, t_gate = t_mlp
        image = image + i_gate * self.image.mlp(modulate(image, i_shift, i_scale))
        text = text + t_gate * self.text.mlp(modulate(text, t_shift, t_scale))
        return image, text


class SingleBlock(nn.Module):
    """Attention and MLP side by side on the joined sequence."""

    def __init__(self, config: MiniFluxConfig):
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.modulation = nn.Linear(dim, 3 * dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(config.head_dim, eps=1e-6) for _ in range(2))
        self.mlp_in = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(5 * dim, dim)

    def forward(self, x: Tensor, cond: Tensor, packing: Packing, masks: list[Tensor | None]) -> Tensor:
        """x: joined tokens (b n d); cond: timestep and text summary after silu (b g d)."""
        shift, scale, gate = per_token(self.modulation(cond), packing.lengths).chunk(3, dim=-1)
        h = modulate(x, shift, scale)
        q, k, v = (heads(project(h), self.num_heads) for project in (self.to_q, self.to_k, self.to_v))
        attended = packed_attention(self.norm_q(q), self.norm_k(k), v, packing, masks)
        return x + gate * self.out(torch.cat([attended, F.gelu(self.mlp_in(h), approximate="tanh")], dim=-1))


class MiniFlux(nn.Module):
    """The diffusion transformer: columns of clips, a timestep and text to the velocity of each noisy clip."""

    def __init__(self, config: MiniFluxConfig):
        super().__init__()
        self.config = config
        dim, patch_dim = config.dim, config.latent_channels * PATCH**2
        self.patch_in = nn.Linear(patch_dim, dim)
        self.text_in = nn.Linear(config.text_dim, dim)
        self.timestep_in = MLP(TIMESTEP_CHANNELS, dim, dim)
        self.pooled_in = MLP(config.pooled_dim, dim, dim)
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_blocks))
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.patch_out = nn.Linear(dim, patch_dim)
        self.initialise()

    def forward(self, columns: list[list[Tensor]], timestep: Tensor, text: TextFeatures) -> list[Tensor]:
        """Velocity of the noisy clip of each column.

        Args:
            columns: per column its clips (b c t h w), history first (oldest and coarsest), the noisy clip last.
                h and w are even, and all columns share b.
            timestep: 0..1000, (rows,), rows = b * number of columns; row = sample * number of columns + column.
            text: one row for each row of `timestep`.

        Returns:
            Per column, a tensor of the shape of its last clip.
        """
        packing = self.packing(columns, text)
        b, g = columns[0][0].shape[0], len(columns)
        masks = packing.masks(rearrange(text.mask, "(b g) n -> b g n", g=g))
        cond = self.timestep_in(timestep_features(timestep).to(text.pooled.dtype)) + self.pooled_in(text.pooled)
        cond = F.silu(rearrange(cond, "(b g) d -> b g d", b=b))

        image_tokens = self.patch_in(torch.cat([patchify(clip) for column in columns for clip in column], dim=1))
        text_tokens = rearrange(self.text_in(text.embeds), "(b g) n d -> b (g n) d", b=b)
        for block in self.double_blocks:
            image_tokens, text_tokens = block(image_tokens, text_tokens, cond, packing, masks)
        joined = packing.join(text_tokens, image_tokens)
        for block in self.single_blocks:
            joined = block(joined, cond, packing, masks)
        noisy = packing.noisy(packing.split(joined)[1])

        scale, shift = per_token(self.modulation_out(cond), packing.num_noisy).chunk(2, dim=-1)
        out = self.patch_out(modulate(torch.cat(noisy, dim=1), shift, scale)).split(packing.num_noisy, dim=1)
        return [unpatchify(o, size_of(column[-1])) for o, column in zip(out, columns, strict=True)]

    def packing(self, columns: list[list[Tensor]], text: TextFeatures) -> Packing:
        """Token layout of a batch; cached by shapes."""
        sizes = tuple(tuple(size_of(clip) for clip in column) for column in columns)
        device = columns[0][0].device
        return make_packing(sizes, text.mask.shape[1], self.config.rope_axes, self.config.causal, device)

    @torch.no_grad()
    def initialise(self) -> None:
        """Weights to train from: Xavier, and zero where a block's output or the prediction is scaled."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "modulation" in name or name.startswith("patch_out"):
                nn.init.zeros_(parameter)
            elif name.startswith(("timestep_in", "pooled_in", "text_in")):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)


def size_of(clip: Tensor) -> tuple[int, int, int]:
    """(t, h, w) of (b c t h w)."""
    t, h, w = clip.shape[2:]
    return t, h, w


def timestep_features(timestep: Tensor) -> Tensor:
    """Cosines and sines of the timestep at 128 frequencies from 1 to 1/10000; (r,) -> (r 256) float32."""
    half = TIMESTEP_CHANNELS // 2
    exponent = -math.log(10_000) * torch.arange(half) / half
    # a float32 exp rounds its last bit differently from machine to machine, which timesteps near 1000 make visible
    frequencies = exponent.double().exp().float().to(timestep.device)
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
