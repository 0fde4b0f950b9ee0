"""MMDiT: the variant that grew out of Stable Diffusion 3. Space is in a table added to the tokens, time in rotation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import MMDiTConfig
from pyramid_model.dit.attention import QKV, modulate
from pyramid_model.dit.blocks import AttentionInput, DoubleBlock, Stream, joint_attention
from pyramid_model.dit.memory import BlockMemory
from pyramid_model.dit.packing import PATCH, Packing
from pyramid_model.dit.rope import THETA
from pyramid_model.dit.transformer import DiT

QK_EPS = 1e-5


class LastText(AttentionInput):
    """Text of the last block: the image looks at it, and nothing comes of it."""

    def __init__(self, config: MMDiTConfig):
        super().__init__(config, num_modulations=2, qk_eps=QK_EPS)

    def enter(self, x: Tensor, cond: Tensor, lengths: Sequence[int]) -> QKV:
        """As `Stream.enter`, of what attention needs alone."""
        scale, shift = self.modulations(cond)  # in the order of the last layer's, not of the other blocks'
        return self.qkv(modulate(x, shift, scale, lengths))


class LastBlock(nn.Module):
    """A double block that leaves the text as it is."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.image, self.text = Stream(config, QK_EPS), LastText(config)

    def forward(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, memory: BlockMemory | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `DoubleBlock.forward`."""
        image_qkv, image_rest = self.image.enter(image, cond, packing.image_segments)
        if packing.num_text:
            text_qkv = self.text.enter(text, cond, packing.text_segments)
            _, image_attended = joint_attention(text_qkv, image_qkv, packing, memory)
        else:  # it is in memory
            image_attended = packing.attend(image_qkv, memory)
        return self.image.leave(image, image_attended, image_rest, packing.image_segments), text


class MMDiT(DiT):
    """Double blocks only. See `DiT` for the call."""

    config: MMDiTConfig
    double_blocks: nn.ModuleList
    positions: Tensor

    def __init__(self, config: MMDiTConfig):
        blocks = [DoubleBlock(config, QK_EPS) for _ in range(config.num_blocks - 1)]
        super().__init__(
            config,
            rope_axes=(config.head_dim,),  # time alone
            patch_in=nn.Conv2d(config.latent_channels, config.dim, PATCH, stride=PATCH),
            double_blocks=nn.ModuleList([*blocks, LastBlock(config)]),
        )
        self.register_buffer("positions", position_table(config))

    def embed(self, columns: list[list[Tensor]]) -> Tensor:
        """See `DiT.embed`; each token carries where it lies in the picture."""
        return torch.cat([self.clip_tokens(clip, column[-1]) for column in columns for clip in column], dim=1)

    def clip_tokens(self, clip: Tensor, noisy: Tensor) -> Tensor:
        """Tokens (b n d) of a clip (b c t h w); noisy: the last clip of its column."""
        patches = self.patch_in(rearrange(clip, "b c t h w -> (b t) c h w"))
        patches = (patches + self.clip_positions(clip, noisy)).to(patches.dtype)
        return rearrange(patches, "(b t) d h w -> b (t h w) d", b=clip.shape[0])

    def clip_positions(self, clip: Tensor, noisy: Tensor) -> Tensor:
        """What is added to the patches of each frame of a clip, (1 d h w).

        The noisy clip takes the middle of the table. A history clip of another resolution covers the same picture, so
        it takes that middle too, interpolated to its own number of patches.

        Raises:
            ValueError: the noisy clip has more patches than the table.
        """
        (h, w), (noisy_h, noisy_w) = ((x.shape[3] // PATCH, x.shape[4] // PATCH) for x in (clip, noisy))
        grid = self.config.position_grid
        if max(noisy_h, noisy_w) > grid:
            raise ValueError(
                f"{noisy.shape[3]}x{noisy.shape[4]} latents are more than this model knows positions for: height and "
                f"width can be at most {grid * PATCH} latents (position_grid * {PATCH})"
            )
        top, left = (grid - noisy_h) // 2, (grid - noisy_w) // 2
        table = rearrange(self.positions, "1 (h w) d -> 1 d h w", h=grid)
        middle = table[:, :, top : top + noisy_h, left : left + noisy_w]
        if (h, w) == (noisy_h, noisy_w):
            return middle
        return F.interpolate(middle, size=(h, w), mode="bilinear", align_corners=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """See `DiT.blocks`."""
        return list(self.double_blocks)

    def transform(
        self, image: Tensor, text: Tensor, cond: Tensor, packing: Packing, memories: Sequence[BlockMemory | None]
    ) -> Tensor:
        """See `DiT.transform`."""
        for block, memory in zip(self.double_blocks, memories, strict=True):
            image, text = block(image, text, cond, packing, memory)
        return image


def position_table(config: MMDiTConfig) -> Tensor:
    """Sines and cosines of where a patch lies, (1 h*w d) float32 for the square grid: half of d for w, then for h."""
    grid, num = config.position_grid, config.dim // 4
    at = (torch.arange(grid) / (grid / config.position_base)).double()  # rounded to float32 first, as published
    angle = at[:, None] * THETA ** (-torch.arange(num, dtype=torch.float64) / num)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1).float()
    by_w, by_h = axis[None].expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)
    return rearrange(torch.cat([by_w, by_h], dim=-1), "h w d -> 1 (h w) d")
