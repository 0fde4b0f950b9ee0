"""miniFLUX: a small FLUX-like transformer. Rotary embedding encodes time, height and width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import PATCH, MiniFluxConfig
from pyramid_model.dit.attention import add_gated, in_chunks, modulate
from pyramid_model.dit.blocks import AttentionInput, DoubleBlock
from pyramid_model.dit.kv_cache import BlockKVCache
from pyramid_model.dit.packing import Packing, patchify
from pyramid_model.dit.transformer import DiT

QK_EPS = 1e-6


class SingleBlock(AttentionInput):
    """Attention and MLP in parallel on the joined sequence, with the same weights for text and image."""

    def __init__(self, config: MiniFluxConfig):
        super().__init__(config, num_modulations=3, qk_eps=QK_EPS)
        self.mlp_in = nn.Linear(config.dim, 4 * config.dim)
        self.out = nn.Linear(5 * config.dim, config.dim)

    def forward(self, x: Tensor, cond: Tensor, packing: Packing, kv_cache: BlockKVCache | None = None) -> Tensor:
        """Joined tokens (b n d) after the block, same shape. Other arguments as in `DoubleBlock.forward`."""
        shift, scale, gate = self.modulations(cond)
        h = modulate(x, shift, scale, packing.joined_segments)
        update = in_chunks(self.leave, packing.attend(self.qkv(h), kv_cache), h)
        return add_gated(x, gate, update, packing.joined_segments)

    def leave(self, attended: Tensor, h: Tensor) -> Tensor:
        """Attention output and modulated tokens h, both (b n d) -> update of the residual stream before the gate."""
        return self.out(torch.cat([attended, F.gelu(self.mlp_in(h), approximate="tanh")], dim=-1))


class MiniFlux(DiT):
    """Double blocks, then single blocks in which text and image share their weights. See `DiT` for the call."""

    config: MiniFluxConfig
    double_blocks: nn.ModuleList
    single_blocks: nn.ModuleList

    def __init__(self, config: MiniFluxConfig):
        super().__init__(
            config,
            config.rope_axes,
            patch_in=nn.Linear(config.latent_channels * PATCH**2, config.dim),
            double_blocks=nn.ModuleList(DoubleBlock(config, QK_EPS) for _ in range(config.num_double_blocks)),
            single_blocks=nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_blocks)),
        )

    def embed(self, columns: list[list[Tensor]]) -> Tensor:
        """See `DiT.embed`. Positions are encoded by the rotary embedding alone."""
        return self.patch_in(torch.cat([patchify(clip) for column in columns for clip in column], dim=1))

    @property
    def blocks(self) -> list[nn.Module]:
        """See `DiT.blocks`."""
        return [*self.double_blocks, *self.single_blocks]

    def transform(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, kv_caches: Sequence[BlockKVCache | None]
    ) -> Tensor:
        """See `DiT.transform`."""
        num_double = len(self.double_blocks)
        for block, kv_cache in zip(self.double_blocks, kv_caches[:num_double], strict=True):
            image, text = block(image, text, cond, packing, kv_cache)
        joined = packing.join(text, image)
        for block, kv_cache in zip(self.single_blocks, kv_caches[num_double:], strict=True):
            joined = block(joined, cond, packing, kv_cache)
        return packing.split(joined)[1]
