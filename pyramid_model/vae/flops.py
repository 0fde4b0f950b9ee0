"""FLOPs of the VAE in closed form, two per multiply-add: convolutions, attention and its projections.

The count does not depend on chunks in time, because the VAE is causal. With tiles, overlaps are counted in each tile.
Zero frames before a clip are counted like other frames, although the CPU implementation skips them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyramid_model.config import VAEConfig
from pyramid_model.vae.tiling import OVERLAP, Tile


def encode_flops(config: VAEConfig, num_frames: int, height: int, width: int, tile: Tile | None = None) -> int:
    """FLOPs of encoding one clip of 1+8k frames of height x width px, both multiples of 8."""
    return _tiled(lambda h, w: _encode(config, _Size(num_frames, h, w)), height, width, tile)


def decode_flops(config: VAEConfig, num_frames: int, height: int, width: int, tile: Tile | None = None) -> int:
    """FLOPs of decoding one clip to 1+8k frames of height x width px, both multiples of 8."""
    return _tiled(lambda h, w: _decode(config, num_frames, h, w), height, width, tile)


@dataclass(frozen=True)
class _Size:
    """Size of an activation inside the VAE."""

    t: int
    h: int
    w: int

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3) -> int:
        """FLOPs of a convolution whose output has this size."""
        return 2 * self.t * self.h * self.w * kernel**3 * in_channels * out_channels

    def resnet(self, in_channels: int, out_channels: int) -> int:
        shortcut = self.conv(in_channels, out_channels, kernel=1) if in_channels != out_channels else 0
        return self.conv(in_channels, out_channels) + self.conv(out_channels, out_channels) + shortcut

    def resnets(self, in_channels: int, channels: int, layers: int) -> int:
        return sum(self.resnet(channels if i else in_channels, channels) for i in range(layers))

    def mid(self, channels: int) -> int:
        tokens = self.h * self.w
        attention = self.t * (4 * 2 * tokens * channels**2 + 2 * 2 * tokens**2 * channels)
        return 2 * self.resnet(channels, channels) + attention


def _encode(config: VAEConfig, size: _Size) -> int:
    stack, moments = config.encoder, 2 * config.latent_channels
    flops, before = size.conv(3, stack.channels[0]), stack.channels[0]
    for i, channels in enumerate(stack.channels):
        flops += size.resnets(before, channels, stack.layers[i])
        if stack.resample_space[i]:
            size = _Size(size.t, size.h // 2, size.w // 2)
            flops += size.conv(channels, channels)
        if stack.resample_time[i]:
            size = _Size((size.t + 1) // 2, size.h, size.w)
            flops += size.conv(channels, channels)
        before = channels
    return flops + size.mid(before) + size.conv(before, moments) + size.conv(moments, moments, kernel=1)


def _decode(config: VAEConfig, num_frames: int, height: int, width: int) -> int:
    stack, latents = config.decoder, config.latent_channels
    time, space = config.time_factor, config.space_factor
    size, before = _Size(1 + (num_frames - 1) // time, height // space, width // space), stack.channels[-1]
    flops = size.conv(latents, latents, kernel=1) + size.conv(latents, before) + size.mid(before)
    for i, channels in enumerate(stack.channels[::-1]):
        flops += size.resnets(before, channels, stack.layers[i])
        if stack.resample_space[i]:
            flops += size.conv(channels, 4 * channels)
            size = _Size(size.t, 2 * size.h, 2 * size.w)
        if stack.resample_time[i]:
            flops += size.conv(channels, 2 * channels)
            size = _Size(2 * size.t - 1, size.h, size.w)
        before = channels
    return flops + size.conv(before, 3)


def _tiled(flops: Callable[[int, int], int], height: int, width: int, tile: Tile | None) -> int:
    """Sum of `flops` (height, width) over the tiles of `code_tiled`."""
    if tile is None or tile.covers(height, width):
        return flops(height, width)
    return sum(flops(h, w) for h in _sides(height, tile.height) for w in _sides(width, tile.width))


def _sides(side: int, tile: int) -> list[int]:
    return [min(tile, side - start) for start in range(0, side, tile - int(tile * OVERLAP))]
