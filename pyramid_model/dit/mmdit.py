"""MMDiT: the variant derived from Stable Diffusion 3.

A position table added to the tokens encodes height and width; rotary embedding encodes time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import PATCH, MMDiTConfig
from pyramid_model.dit.attention import QKV, modulate
from pyramid_model.dit.blocks import AttentionInput, DoubleBlock, Stream, joint_attention
from pyramid_model.dit.kv_cache import BlockKVCache
from pyramid_model.dit.packing import Packing
from pyramid_model.dit.rope import THETA
from pyramid_model.dit.transformer import DiT

QK_EPS = 1e-5


class LastText(AttentionInput):
    """Text weights of the last block: they compute keys, values and queries only; the text output is discarded."""

    def __init__(self, config: MMDiTConfig):
        super().__init__(config, num_modulations=2, qk_eps=QK_EPS)

    def enter(self, x: Tensor, cond: Tensor, lengths: Sequence[int]) -> QKV:
        """Queries, keys and values of the text, (b n h d) each. Arguments as in `Stream.enter`."""
        scale, shift = self.modulations(cond)  # scale first, as in the output layer; the other blocks have shift first
        return self.qkv(modulate(x, shift, scale, lengths))


class LastBlock(nn.Module):
    """The last double block: it updates the image tokens and returns the text tokens unchanged."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.image, self.text = Stream(config, QK_EPS), LastText(config)

    def forward(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, kv_cache: BlockKVCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `DoubleBlock.forward`."""
        image_qkv, image_modulations = self.image.enter(image, cond, packing.image_segments)
        if packing.num_text:
            text_qkv = self.text.enter(text, cond, packing.text_segments)
            _, image_attended = joint_attention(text_qkv, image_qkv, packing, kv_cache)
        else:  # keys and values of the text are in the KV cache
            image_attended = packing.attend(image_qkv, kv_cache)
        return self.image.leave(image, image_attended, image_modulations, packing.image_segments), text


class MMDiT(DiT):
    """Double blocks only. See `DiT` for the call."""

    config: MMDiTConfig
    double_blocks: nn.ModuleList
    positions: Tensor

    def __init__(self, config: MMDiTConfig):
        blocks = [DoubleBlock(config, QK_EPS) for _ in range(config.num_blocks - 1)]
        super().__init__(
            config,
            rope_axes=(config.head_dim,),  # the rotary embedding encodes time only
            patch_in=nn.Conv2d(config.latent_channels, config.dim, PATCH, stride=PATCH),
            double_blocks=nn.ModuleList([*blocks, LastBlock(config)]),
        )
        self.register_buffer("positions", position_table(config))

    def embed(self, columns: list[list[Tensor]]) -> Tensor:
        """See `DiT.embed`. The position in the picture is added to each token."""
        return torch.cat([self.clip_tokens(clip, column[-1]) for column in columns for clip in column], dim=1)

    def clip_tokens(self, clip: Tensor, noisy: Tensor) -> Tensor:
        """Tokens (b n d) of a clip (b c t h w); noisy: the last clip of its column."""
        patches = self.patch_in(rearrange(clip, "b c t h w -> (b t) c h w"))
        patches = (patches + self.clip_positions(clip, noisy)).to(patches.dtype)
        return rearrange(patches, "(b t) d h w -> b (t h w) d", b=clip.shape[0])

    def clip_positions(self, clip: Tensor, noisy: Tensor) -> Tensor:
        """Position embedding of the patches of one frame of a clip, (1 d h w).

        The noisy clip uses the centre of the position table. A history clip of another resolution shows the same
        picture, so it uses the same centre, interpolated to its own number of patches.

        Raises:
            ValueError: the noisy clip has more patches along a side than the position table.
        """
        (h, w), (noisy_h, noisy_w) = ((x.shape[3] // PATCH, x.shape[4] // PATCH) for x in (clip, noisy))
        grid = self.config.position_grid
        if max(noisy_h, noisy_w) > grid:
            raise ValueError(
                f"a clip of {noisy.shape[3]}x{noisy.shape[4]} latents is larger than the model's position table: "
                f"height and width can be at most {grid * PATCH} latents (position_grid {grid} * {PATCH}). Lower the "
                "height or width of the clip"
            )
        top, left = (grid - noisy_h) // 2, (grid - noisy_w) // 2
        table = rearrange(self.positions, "1 (h w) d -> 1 d h w", h=grid)
        centre = table[:, :, top : top + noisy_h, left : left + noisy_w]
        if (h, w) == (noisy_h, noisy_w):
            return centre
        return F.interpolate(centre, size=(h, w), mode="bilinear", align_corners=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """See `DiT.blocks`."""
        return list(self.double_blocks)

    def transform(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, kv_caches: Sequence[BlockKVCache | None]
    ) -> Tensor:
        """See `DiT.transform`."""
        for block, kv_cache in zip(self.double_blocks, kv_caches, strict=True):
            image, text = block(image, text, cond, packing, kv_cache)
        return image


def position_table(config: MMDiTConfig) -> Tensor:
    """Sine and cosine embedding of the square grid of patches, (1 h*w d) float32: half of d for w, then half for h."""
    grid, num = config.position_grid, config.dim // 4
    # rounded to float32 first, as in the published code
    coordinates = (torch.arange(grid) / (grid / config.position_base)).double()
    angle = coordinates[:, None] * THETA ** (-torch.arange(num, dtype=torch.float64) / num)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1).float()
    by_w, by_h = axis[None].expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)
    return rearrange(torch.cat([by_w, by_h], dim=-1), "h w d -> 1 (h w) d")
