"""Base class of the diffusion transformers, which predict the velocity of each noisy clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import PATCH, DiTConfig
from pyramid_model.dit.attention import modulate
from pyramid_model.dit.blocks import MLP
from pyramid_model.dit.branches import Branches, make_branch_packing, noisy_clips
from pyramid_model.dit.kv_cache import BlockKVCache, KVCache
from pyramid_model.dit.packing import Packing, Size, frame_ends, make_packing, unpatchify, without_first_frames
from pyramid_model.text import TextFeatures

TIMESTEP_CHANNELS = 256
# Computed in float64: the last bit of a float32 exp differs between machines, and timesteps near 1000 amplify it.
FREQUENCIES = torch.exp((-math.log(10_000) * torch.arange(128) / 128).double()).float()


class DiT(nn.Module):
    """Diffusion transformer: predicts the velocity of each noisy clip from columns of clips, a timestep and text.

    The subclasses `MiniFlux` and `MMDiT` define the embedding of clips (`embed`) and the blocks (`transform`).

    Args:
        config: sizes.
        rope_axes: channels of a head that are rotated by t, h and w; later axes may be omitted.
        patch_in: layer that embeds the patches.
        blocks: lists of blocks; the keyword becomes the attribute's name.
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
        kv_cache: KVCache | None = None,
        num_cached: int = 0,
        branches: Sequence[Branches] = (),
    ) -> list[Tensor]:
        """Velocity of each noisy clip.

        Args:
            columns: clips (b c t h w) of each column: history first, oldest and coarsest at the front; the noisy clip
                last. h and w are even, and all columns have the same b.
            timestep: of each noisy clip, 0..1000, (b * number of noisy clips,), the noisy clip being the fast index.
            text: of each column, b * number of columns rows; row = sample * number of columns + column.
            kv_cache: keys and values of this text and of the first frames of the only column, from earlier calls. These
                tokens are not computed again. A new cache is empty.
            num_cached: history frames that the cache must hold after this call; at least those that it holds already.
            branches: of each column, for columns with several noisy clips; see `dit.branches`. Empty: one in each.

        Returns:
            One velocity for each noisy clip, in its shape.
        """
        b, g, first = columns[0][0].shape[0], len(columns), kv_cache.num_frames if kv_cache else 0
        assert kv_cache is None or (g == 1 and self.config.causal), "a KV cache needs a causal model and one column"
        text = text.padded_first
        packing = self.packing(columns, text, first, num_cached, tuple(branches))
        pooled = text.pooled
        if packing.num_branches:
            repeats = torch.tensor(packing.num_branches, device=pooled.device)
            pooled = pooled.unflatten(0, (b, g)).repeat_interleave(repeats, dim=1).flatten(0, 1)
        cond = self.conditioning(timestep, pooled, b)
        if first:
            columns = [without_first_frames(columns[0], first)]
        embeds = text.embeds[:, : packing.num_text]
        text_tokens = rearrange(self.text_in(embeds), "(b g) n d -> b (g n) d", b=b)
        kv_caches = kv_cache.blocks if kv_cache else [None] * len(self.blocks)
        image_tokens = self.transform(self.embed(columns), text_tokens, cond, packing, kv_caches)
        if kv_cache and num_cached > first:
            sizes = tuple(size_of(clip) for clip in columns[0])
            kv_cache.ends += frame_ends(sizes, kv_cache.ends[-1] if first else packing.num_text)[: num_cached - first]

        scale, shift = self.modulation_out(packing.noisy_segments(cond)).chunk(2, dim=-1)
        noisy = torch.cat(packing.noisy(image_tokens), dim=1)
        out = self.patch_out(modulate(noisy, shift, scale, packing.num_noisy)).split(packing.num_noisy, dim=1)
        clips = noisy_clips(columns, branches) if branches else [column[-1] for column in columns]
        return [unpatchify(o, size_of(clip)) for o, clip in zip(out, clips, strict=True)]

    def conditioning(self, timestep: Tensor, pooled: Tensor, batch: int) -> Tensor:
        """Embedding of timestep and pooled text for each segment of the tokens, after SiLU: (b s d).

        With shared history time, a column is one segment. With clean history time, it has two: text and history with
        timestep 0, then the noisy clip with its own timestep.
        """
        pooled_embedding = self.pooled_in(pooled)
        timesteps = [timestep]
        if self.config.clean_history:
            timesteps.insert(0, torch.zeros_like(timestep))
        segments = [self.timestep_in(timestep_features(t).to(pooled.dtype)) + pooled_embedding for t in timesteps]
        return F.silu(rearrange(torch.stack(segments), "s (b g) d -> b (g s) d", b=batch))

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, in the order they run; each contains one attention."""
        raise NotImplementedError

    def embed(self, columns: list[list[Tensor]]) -> Tensor:
        """Image tokens (b n d) of all clips of all columns."""
        raise NotImplementedError

    def transform(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, kv_caches: Sequence[BlockKVCache | None]
    ) -> Tensor:
        """Image tokens (b n d) after all blocks.

        Args:
            image, text, cond, packing: as in `DoubleBlock.forward`.
            kv_caches: one entry for each block of `blocks`; None: no cache.
        """
        raise NotImplementedError

    def packing(
        self,
        columns: list[list[Tensor]],
        text: TextFeatures,
        first_frame: int = 0,
        num_cached: int = 0,
        branches: tuple[Branches, ...] = (),
    ) -> Packing:
        """Token layout of a batch. See `make_packing`, and `make_branch_packing` for columns with branches."""
        sizes = tuple(tuple(size_of(clip) for clip in column) for column in columns)
        config, clip = self.config, columns[0][0]
        if branches:
            assert config.causal, "a history that several noisy clips share must not attend to them"
            assert config.clean_history, "a history that several noisy clips share must not depend on their timesteps"
            mode = getattr(clip, "fake_mode", None)
            return make_branch_packing(sizes, branches, text.lengths, self.rope_axes, clip.device, mode)
        options = (self.rope_axes, config.causal, config.clean_history, clip.device)
        return make_packing(sizes, text.lengths, *options, first_frame, num_cached, getattr(clip, "fake_mode", None))

    @torch.no_grad()
    def initialise(self) -> None:
        """Initialise the weights for training: Xavier; zero for biases, modulations and the output layer."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "modulation" in name or name.startswith("patch_out"):
                nn.init.zeros_(parameter)
            elif name.startswith(("timestep_in", "pooled_in", "text_in")):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))  # a patch convolution is a matrix product on a patch


def size_of(clip: Tensor) -> Size:
    """(t, h, w) of (b c t h w)."""
    t, h, w = clip.shape[2:]
    return t, h, w


def timestep_features(timestep: Tensor) -> Tensor:
    """Cosines, then sines of the timestep at 128 frequencies from 1 to 1/10000; (r,) -> (r 256) float32."""
    angles = timestep.float()[:, None] * FREQUENCIES.to(timestep.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
