"""Building blocks of the causal video VAE. Every `x` is (b c t h w)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import VAEStackConfig
from pyramid_model.vae.conv import CausalConv3d, Chunk, FrameGroupNorm


class ResnetBlock(nn.Module):
    """Residual block of two causal convolutions; a 1x1x1 convolution in the shortcut if the channels change."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int):
        super().__init__()
        self.norm1 = FrameGroupNorm(norm_groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = FrameGroupNorm(norm_groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.shortcut = CausalConv3d(in_channels, out_channels, kernel=1) if in_channels != out_channels else None

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """(b c t h w) -> (b out_channels t h w)."""
        h = self.conv1(F.silu(self.norm1(x)), chunk)
        h = self.conv2(F.silu(self.norm2(h)), chunk)
        return h + (self.shortcut(x, chunk) if self.shortcut else x)


class FrameAttention(nn.Module):
    """Single-head attention among the positions of one frame."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = FrameGroupNorm(norm_groups, channels)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(b c t h w) -> same shape."""
        tokens = rearrange(self.norm(x), "b c t h w -> t b (h w) c")
        attended = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + rearrange(self.to_out(attended), "t b (h w) c -> b c t h w", h=x.shape[3])


class MidBlock(nn.Module):
    """The innermost block of encoder and decoder: residual block, frame attention, residual block."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.resnet_in = ResnetBlock(channels, channels, norm_groups)
        self.attention = FrameAttention(channels, norm_groups)
        self.resnet_out = ResnetBlock(channels, channels, norm_groups)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """(b c t h w) -> same shape."""
        return self.resnet_out(self.attention(self.resnet_in(x, chunk)), chunk)


class SpaceUpsample(nn.Module):
    """Doubles h and w: a convolution to four times the channels, then each four channels become a 2x2 block."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, 4 * channels)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """(b c t h w) -> (b c t 2h 2w)."""
        stored = rearrange(self.conv(x, chunk), "b (c p q) t h w -> t b (h p) (w q) c", p=2, q=2)
        return rearrange(stored, "t b h w c -> b c t h w")


class TimeUpsample(nn.Module):
    """Doubles t: a convolution to twice the channels, then each two channels become consecutive frames.

    The first frame of a clip is not doubled.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, 2 * channels)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """(b c t h w) -> (b c 2t h w), or 2t - 1 frames if the chunk starts the clip."""
        stored = rearrange(self.conv(x, chunk), "b (c p) t h w -> (t p) b h w c", p=2)
        x = rearrange(stored, "t b h w c -> b c t h w")
        return x[:, :, 1:] if chunk.starts_clip else x


class DownBlock(nn.Module):
    """Block i of the encoder: residual blocks, then strided convolutions that halve space or time if configured."""

    def __init__(self, in_channels: int, config: VAEStackConfig, i: int):
        super().__init__()
        channels = config.channels[i]
        widths = ([in_channels] + [channels] * config.layers[i])[: config.layers[i]]
        self.resnets = nn.ModuleList(ResnetBlock(width, channels, config.norm_groups) for width in widths)
        space, time = config.resample_space[i], config.resample_time[i]
        self.space = CausalConv3d(channels, channels, stride=(1, 2, 2)) if space else None
        self.time = CausalConv3d(channels, channels, stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """(b c t h w) -> (b channels t' h' w')."""
        for resnet in self.resnets:
            x = resnet(x, chunk)
        x = self.space(x, chunk) if self.space else x
        return self.time(x, chunk) if self.time else x


class UpBlock(nn.Module):
    """Block i of the decoder: residual blocks, then upsampling of space or time if configured."""

    def __init__(self, in_channels: int, config: VAEStackConfig, i: int):
        super().__init__()
        channels = config.channels[::-1][i]
        widths = ([in_channels] + [channels] * config.layers[i])[: config.layers[i]]
        self.resnets = nn.ModuleList(ResnetBlock(width, channels, config.norm_groups) for width in widths)
        self.space = SpaceUpsample(channels) if config.resample_space[i] else None
        self.time = TimeUpsample(channels) if config.resample_time[i] else None

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """(b c t h w) -> (b channels t' h' w')."""
        for resnet in self.resnets:
            x = resnet(x, chunk)
        x = self.space(x, chunk) if self.space else x
        return self.time(x, chunk) if self.time else x
