"""A straightforward implementation of sampling, as a baseline for ours: same weights and result, no optimisation.

`Habits` lists its techniques in the DiT. `LoopNoise` draws the jump noise, `plain_convolutions` replaces the VAE's
convolutions, and `sample` has the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from pyramid_model.config import PATCH
from pyramid_model.dit.blocks import AttentionInput, DoubleBlock, Stream
from pyramid_model.dit.miniflux import MiniFlux, SingleBlock
from pyramid_model.dit.mmdit import LastBlock, MMDiT
from pyramid_model.dit.packing import Size, clip_positions, patchify, unpatchify
from pyramid_model.dit.rope import rotate, rotation_table
from pyramid_model.dit.transformer import size_of, timestep_features
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.jump import jump
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import noise_pyramid
from pyramid_model.flow.sampler import Sampling
from pyramid_model.flow.schedule import Schedule, euler_step, sampling_local_times
from pyramid_model.text import MAX_TOKENS, TextFeatures
from pyramid_model.vae import conv

QKV = tuple[Tensor, Tensor, Tensor]


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Context in which the VAE's convolutions are torch's conv3d on padded frames."""
    ours = conv.causal_conv3d

    def plain(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], num_zeros: int) -> Tensor:
        pad_h, pad_w = weight.shape[3] // 2, weight.shape[4] // 2
        return F.conv3d(F.pad(x, (pad_w, pad_w, pad_h, pad_h, num_zeros, 0)), weight, bias, stride)

    conv.causal_conv3d = plain
    try:
        yield
    finally:
        conv.causal_conv3d = ours


class LoopNoise(Noise):
    """Noise that draws each 2x2 block of the jump noise from a multivariate normal, in a loop."""

    def block(self, *shape: int, gamma: float) -> Tensor:
        """Same as `Noise.block`, with torch's global generator."""
        b, c, t, h, w = shape
        normal = MultivariateNormal(torch.zeros(4), covariance_matrix=block_covariance(gamma))
        drawn = torch.stack([normal.sample() for _ in range(b * c * t * (h // 2) * (w // 2))])
        sides = {"b": b, "c": c, "t": t, "h": h // 2, "p": 2}
        return rearrange(drawn, "(b c t h w) (p q) -> b c t (h p) (w q)", **sides).to(self.device)


def block_covariance(gamma: float) -> Tensor:
    """Covariance of the four values of a block, (4 4) float32; made positive definite by a small diagonal if needed.

    At gamma = 1/3 it is singular, and rounding decides whether float32 has a Cholesky factor.
    """
    covariance = (1 + gamma) * torch.eye(4) - gamma * torch.ones(4, 4)
    return covariance + 1e-6 * torch.eye(4) if torch.linalg.cholesky_ex(covariance).info else covariance


@dataclass(frozen=True)
class Habits:
    """Which techniques are straightforward.

    dense_mask: one attention call over all tokens with a mask over all pairs, which each call builds again; otherwise
        one call for each frame over the tokens that it attends to, without a mask.
    new_layout: each call computes positions and rotations again; otherwise once for each shape.
    wide_modulation: modulation vectors are copied to every token; otherwise broadcast.
    real_rotation: queries and keys are rotated by products of real numbers; otherwise of complex numbers.
    """

    dense_mask: bool = True
    new_layout: bool = True
    wide_modulation: bool = True
    real_rotation: bool = True


NONE = Habits(False, False, False, False)


class Straightforward:
    """Straightforward forward pass of a DiT for one column, with the DiT's weights and the same result."""

    def __init__(self, dit: MiniFlux | MMDiT, habits: Habits):
        self.dit, self.config, self.habits = dit, dit.config, habits
        self.rotations: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, columns: list[list[Tensor]], timestep: Tensor, text: TextFeatures) -> list[Tensor]:
        """Same as `DiT.forward`, for one column."""
        ((*history, noisy),) = columns
        clips, dit, num_text = [*history, noisy], self.dit, text.mask.shape[1]
        sizes = tuple(size_of(clip) for clip in clips)
        call = Call(
            [num_text, *(h * w // PATCH**2 for t, h, w in sizes for _ in range(t))],
            text.mask,
            self.rotation(sizes, num_text),
            self.habits,
        )
        cond = dit.timestep_in(timestep_features(timestep).to(text.pooled.dtype)) + dit.pooled_in(text.pooled)
        cond = F.silu(cond)
        image = transform(dit, self.embed(clips), dit.text_in(text.embeds), cond, call)
        tokens = image[:, -call.lengths[-1] * sizes[-1][0] :]
        scale, shift = call.modulations(dit.modulation_out(cond), tokens, 2)
        return [unpatchify(dit.patch_out(modulated(tokens, shift, scale)), sizes[-1])]

    def rotation(self, sizes: tuple[Size, ...], num_text: int) -> Tensor:
        """Rotary table of [text | clips], (n 1 d/2)."""
        key = (sizes, num_text)
        if self.habits.new_layout or key not in self.rotations:
            positions = torch.cat([torch.zeros(num_text, 3, dtype=torch.float64), clip_positions(sizes)])
            self.rotations[key] = rotation_table(positions, self.dit.rope_axes)
        return self.rotations[key]

    def embed(self, clips: list[Tensor]) -> Tensor:
        """Image tokens (b n d)."""
        if isinstance(self.dit, MiniFlux):
            return torch.cat([self.dit.patch_in(patchify(clip)) for clip in clips], dim=1)
        return torch.cat([self.mmdit_tokens(self.dit, clip, clips[-1]) for clip in clips], dim=1)

    def mmdit_tokens(self, dit: MMDiT, clip: Tensor, noisy: Tensor) -> Tensor:
        """Tokens (b n d) of a clip with their positions in the picture."""
        patches = dit.patch_in(rearrange(clip, "b c t h w -> (b t) c h w"))
        patches = (patches + dit.clip_positions(clip, noisy)).to(patches.dtype)
        return rearrange(patches, "(b t) d h w -> b (t h w) d", b=clip.shape[0])


@dataclass(frozen=True)
class Call:
    """Values that all layers of one call use. lengths: number of tokens of the text and of each frame."""

    lengths: list[int]
    text_mask: Tensor
    rotation: Tensor
    habits: Habits

    def modulations(self, vectors: Tensor, tokens: Tensor, num: int) -> list[Tensor]:
        """Vectors (b num*d) -> num modulations of the tokens (b n d)."""
        wide = repeat(vectors, "b d -> b n d", n=tokens.shape[1] if self.habits.wide_modulation else 1)
        return list(wide.contiguous().chunk(num, dim=-1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention: queries, keys and values of the joined sequence (b h n d) -> output (b n h*d)."""
        q, k = (self._turned(x) for x in (q, k))
        attention = self._masked(q, k, v) if self.habits.dense_mask else self._by_frame(q, k, v)
        return rearrange(attention, "b h n d -> b n (h d)")

    def _turned(self, x: Tensor) -> Tensor:
        if not self.habits.real_rotation:
            return rotate(x.transpose(1, 2), self.rotation).transpose(1, 2)
        cos, sin = self.rotation[:, 0].real, self.rotation[:, 0].imag
        even, odd = rearrange(x.float(), "b h n (p two) -> two b h n p", two=2)
        return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2).to(x.dtype)

    def _masked(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        num_image = sum(self.lengths[1:])
        time = torch.cat([torch.full((n,), max(0, i - 1)) for i, n in enumerate(self.lengths)])
        real = F.pad(self.text_mask, (0, num_image), value=True)
        mask = (real[:, :, None] == real[:, None, :]) & (time[:, None] >= time)  # padding attends to padding only
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])

    def _by_frame(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outputs, start = [], 0
        for n in [self.lengths[0] + self.lengths[1], *self.lengths[2:]]:
            stop = start + n
            real = None
            if not self.text_mask.all():
                real = F.pad(self.text_mask, (0, stop - self.lengths[0]), value=True)[:, None, None]
            part = (q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop])
            outputs.append(F.scaled_dot_product_attention(*part, attn_mask=real))
            start = stop
        return torch.cat(outputs, dim=2)


def transform(dit: MiniFlux | MMDiT, image: Tensor, text: Tensor, cond: Tensor, call: Call) -> Tensor:
    """Image tokens (b n d) after all blocks."""
    for block in dit.double_blocks:
        image, text = double_block(block, image, text, cond, call)
    if isinstance(dit, MMDiT):
        return image
    joined = torch.cat([text, image], dim=1)
    for block in dit.single_blocks:
        joined = single_block(block, joined, cond, call)
    return joined[:, text.shape[1] :]


def double_block(
    block: DoubleBlock | LastBlock, image: Tensor, text: Tensor, cond: Tensor, call: Call
) -> tuple[Tensor, Tensor]:
    """Image and text tokens, each (b n d), after a block; the last block of an MMDiT does not change the text."""
    shift, scale, *image_rest = call.modulations(block.image.modulation(cond), image, 6)
    image_qkv = qkv(block.image, modulated(image, shift, scale))
    last = isinstance(block, LastBlock)
    shift, scale, *text_rest = call.modulations(block.text.modulation(cond), text, 2 if last else 6)
    if last:
        shift, scale = scale, shift
    text_qkv = qkv(block.text, modulated(text, shift, scale))
    attention = call.attend(*(torch.cat(pair, dim=2) for pair in zip(text_qkv, image_qkv, strict=True)))
    text_attention, image_attention = attention.split([text.shape[1], image.shape[1]], dim=1)
    image = finish(block.image, image, image_attention, image_rest)
    return image, text if last else finish(block.text, text, text_attention, text_rest)


def single_block(block: SingleBlock, joined: Tensor, cond: Tensor, call: Call) -> Tensor:
    """Joined tokens (b n d) after a block."""
    shift, scale, gate = call.modulations(block.modulation(cond), joined, 3)
    h = modulated(joined, shift, scale)
    hidden = F.gelu(block.mlp_in(h), approximate="tanh")
    return joined + gate * block.out(torch.cat([call.attend(*qkv(block, h)), hidden], dim=-1))


def qkv(side: AttentionInput, x: Tensor) -> QKV:
    """Modulated tokens (b n d) -> queries, keys and values (b h n d)."""
    q, k, v = (
        rearrange(project(x), "b n (h d) -> b h n d", h=side.num_heads) for project in (side.to_q, side.to_k, side.to_v)
    )
    return side.norm_q(q), side.norm_k(k), v


def finish(side: Stream, x: Tensor, attention: Tensor, rest: list[Tensor]) -> Tensor:
    """Tokens (b n d) of one side after attention and MLP."""
    gate, mlp_shift, mlp_scale, mlp_gate = rest
    x = x + gate * side.to_out(attention)
    return x + mlp_gate * side.mlp(modulated(x, mlp_shift, mlp_scale))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def padded(text: TextFeatures) -> TextFeatures:
    """The same prompts padded to 128 tokens, as in the published code."""
    no_row = TextFeatures(
        text.embeds.new_zeros(0, MAX_TOKENS, text.embeds.shape[2]),
        text.mask.new_zeros(0, MAX_TOKENS),
        text.pooled[:0],
    )
    return text.concat(no_row)


@torch.no_grad()
def sample(
    dit: Straightforward,
    text: TextFeatures,
    negative: TextFeatures,
    sampling: Sampling,
    noise: Noise,
) -> Tensor:
    """Normalised latents (b c t h w) of whole clips; arguments as in `sample_video`. Every scale is applied."""
    schedule, config, rows = Schedule(sampling.pyramid), sampling.pyramid, padded(negative).concat(padded(text))
    start = noise_pyramid(
        noise.normal(text.mask.shape[0], dit.config.latent_channels, *sampling.size), config.num_stages
    )[0]
    clean: list[Tensor] = []
    for unit, scale in enumerate(sampling.guidance):
        x = start[:, :, sampling.frames_of(unit)]
        past = latent_pyramid(torch.cat(clean, dim=2), config.num_stages) if clean else []
        for index, stage in enumerate(schedule.stages):
            num_steps = (sampling.steps if unit else sampling.first_steps)[index]
            if index:
                b, c, t, h, w = x.shape
                x = jump(x, stage, noise.block(b, c, t, 2 * h, 2 * w, gamma=config.gamma), config.gamma)
            history = [torch.cat([c, c]) for c in history_clips(past, index, unit, config.frames_per_unit)]
            local_t = sampling_local_times(num_steps).tolist()
            for i, timestep in enumerate(stage.sampling_timesteps(num_steps).float()):
                (velocity,) = dit([[*history, torch.cat([x, x])]], timestep.expand(rows.mask.shape[0]), rows)
                without, with_text = velocity.chunk(2)
                x = euler_step(x, without + scale * (with_text - without), local_t[i], local_t[i + 1])
        clean.append(x)
    return torch.cat(clean, dim=2)
