"""What the diffusion transformers share: from clips, timestep and text to the velocity of each noisy clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import DiTConfig
from pyramid_model.dit.attention import modulate
from pyramid_model.dit.blocks import MLP
from pyramid_model.dit.memory import BlockMemory, HistoryMemory
from pyramid_model.dit.packing import PATCH, Packing, Size, frame_ends, make_packing, unpatchify, without_first_frames
from pyramid_model.text import TextFeatures

TIMESTEP_CHANNELS = 256
# a float32 exp rounds its last bit differently from machine to machine, which timesteps near 1000 make visible
FREQUENCIES = torch.exp((-math.log(10_000) * torch.arange(128) / 128).double()).float()


class DiT(nn.Module):
    """A diffusion transformer: columns of clips, a timestep and text to the velocity of each noisy clip.

    `MiniFlux` and `MMDiT` say how clips become tokens (`embed`) and what the blocks are (`transform`).

    Args:
        config: sizes.
        rope_axes: channels of a head that are turned by t, h and w; later axes may be left out.
        patch_in: first layer of the image tokens.
        blocks: lists of blocks, by the name they get.
    """

    def __init__(self, config: DiTConfig, rope_axes: tuple[int, ...], patch_in: nn.Module, **blocks: nn.ModuleList):
        super().__init__()
        self.config, self.rope_axes = config, rope_axes
        dim = config.dim
        self.patch_in = patch_in
        self.text_in = nn.Linear(config.text_dim, dim)
        self.timestep_in = MLP(TIMESTEP_CHANNELS, dim, dim)
        self.pooled_in = MLP(config.pooled_dim, dim, dim)
        for name, layers in blocks.items():
            self.add_module(name, layers)
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.patch_out = nn.Linear(dim, config.latent_channels * PATCH**2)
        self.initialise()

    def forward(
        self,
        columns: list[list[Tensor]],
        timestep: Tensor,
        text: TextFeatures,
        memory: HistoryMemory | None = None,
        remember: int = 0,
    ) -> list[Tensor]:
        """Velocity of the noisy clip of each column.

        Args:
            columns: per column its clips (b c t h w), history first (oldest and coarsest), the noisy clip last.
                h and w are even, and all columns share b.
            timestep: 0..1000, (rows,), rows = b * number of columns; row = sample * number of columns + column.
            text: one row for each row of `timestep`.
            memory: of the same text and the same first frames of the only column, which are then not computed again.
                A fresh one remembers nothing yet.
            remember: frames of history that the memory is to hold after this call, at least those it holds already.

        Returns:
            Per column, a tensor of the shape of its last clip.
        """
        b, g, known = columns[0][0].shape[0], len(columns), memory.num_frames if memory else 0
        assert memory is None or (g == 1 and self.config.causal), "only a causal model with one column has memory"
        text = text.padded_first
        packing = self.packing(columns, text, known, remember)
        cond = self.conditioning(timestep, text.pooled, b)
        if known:
            columns = [without_first_frames(columns[0], known)]
        embeds = text.embeds[:, : packing.num_text]
        text_tokens = rearrange(self.text_in(embeds), "(b g) n d -> b (g n) d", b=b)
        memories = memory.blocks if memory else [None] * len(self.blocks)
        image_tokens = self.transform(self.embed(columns), text_tokens, cond, packing, memories)
        if memory and remember > known:
            sizes = tuple(size_of(clip) for clip in columns[0])
            memory.ends += frame_ends(sizes, memory.ends[-1] if known else packing.num_text)[: remember - known]

        scale, shift = self.modulation_out(packing.noisy_segments(cond)).chunk(2, dim=-1)
        noisy = torch.cat(packing.noisy(image_tokens), dim=1)
        out = self.patch_out(modulate(noisy, shift, scale, packing.num_noisy)).split(packing.num_noisy, dim=1)
        return [unpatchify(o, size_of(column[-1])) for o, column in zip(out, columns, strict=True)]

    def conditioning(self, timestep: Tensor, pooled: Tensor, batch: int) -> Tensor:
        """Timestep and text summary of each segment of the tokens, after silu: (b s d).

        With shared history time a column is one segment; with clean history time its text and history, which are told
        that they are data, come before its noisy clip.
        """
        summary = self.pooled_in(pooled)
        times = [timestep]
        if self.config.clean_history:
            times.insert(0, torch.zeros_like(timestep))
        told = [self.timestep_in(timestep_features(time).to(pooled.dtype)) + summary for time in times]
        return F.silu(rearrange(torch.stack(told), "s (b g) d -> b (g s) d", b=batch))

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, in the order they run; each attends once."""
        raise NotImplementedError

    def embed(self, columns: list[list[Tensor]]) -> Tensor:
        """Image tokens (b n d) of all clips of all columns."""
        raise NotImplementedError

    def transform(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, memories: Sequence[BlockMemory | None]
    ) -> Tensor:
        """Image tokens (b n d) after all blocks, each with its memory. Arguments as in `DoubleBlock.forward`."""
        raise NotImplementedError

    def packing(self, columns: list[list[Tensor]], text: TextFeatures, known: int = 0, remember: int = 0) -> Packing:
        """Token layout of a batch. See `make_packing`."""
        sizes = tuple(tuple(size_of(clip) for clip in column) for column in columns)
        config, clip = self.config, columns[0][0]
        about = (self.rope_axes, config.causal, config.clean_history, clip.device)
        return make_packing(sizes, text.lengths, *about, known, remember, getattr(clip, "fake_mode", None))

    @torch.no_grad()
    def initialise(self) -> None:
        """Weights to train from: Xavier, and zero where a block's output or the prediction is scaled."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "modulation" in name or name.startswith("patch_out"):
                nn.init.zeros_(parameter)
            elif name.startswith(("timestep_in", "pooled_in", "text_in")):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))  # a kernel counts as the matrix that it is for one patch


def size_of(clip: Tensor) -> Size:
    """(t, h, w) of (b c t h w)."""
    t, h, w = clip.shape[2:]
    return t, h, w


def timestep_features(timestep: Tensor) -> Tensor:
    """Cosines and sines of the timestep at 128 frequencies from 1 to 1/10000; (r,) -> (r 256) float32."""
    angles = timestep.float()[:, None] * FREQUENCIES.to(timestep.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
