"""The causal video VAE. It maps 1 + 8k frames to 1 + k latent frames of an eighth of the height and width, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import VAEConfig
from pyramid_model.vae.blocks import DownBlock, MidBlock, UpBlock
from pyramid_model.vae.conv import CausalConv3d, Chunk, FrameGroupNorm, store_by_frame
from pyramid_model.vae.posterior import Posterior
from pyramid_model.vae.tiling import Tile, code_tiled

SMALL_PIECE = 2**24  # values of an activation; smaller pieces are not split further when decoding


class Encoder(nn.Module):
    """Frames to moments (mean and log variance)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        stack = config.encoder
        self.conv_in = CausalConv3d(3, stack.channels[0])
        widths = (stack.channels[0], *stack.channels)
        self.blocks = nn.ModuleList(DownBlock(widths[i], stack, i) for i in range(len(stack.channels)))
        self.mid = MidBlock(stack.channels[-1], stack.norm_groups)
        self.norm_out = FrameGroupNorm(stack.norm_groups, stack.channels[-1])
        self.conv_out = CausalConv3d(stack.channels[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """(b 3 t h w) -> (b 2*latent_channels t' h' w')."""
        x = self.conv_in(store_by_frame(x), chunk)
        for block in self.blocks:
            x = block(x, chunk)
        return self.conv_out(F.silu(self.norm_out(self.mid(x, chunk))), chunk)


class Decoder(nn.Module):
    """Latents to frames."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        stack = config.decoder
        self.conv_in = CausalConv3d(config.latent_channels, stack.channels[-1])
        self.mid = MidBlock(stack.channels[-1], stack.norm_groups)
        widths = (stack.channels[-1], *stack.channels[::-1])
        self.blocks = nn.ModuleList(UpBlock(widths[i], stack, i) for i in range(len(stack.channels)))
        self.norm_out = FrameGroupNorm(stack.norm_groups, stack.channels[0])
        self.conv_out = CausalConv3d(stack.channels[0], 3)

    def forward(self, z: Tensor, chunk: Chunk) -> Tensor:
        """(b latent_channels t h w) -> (b 3 t' h' w')."""
        x = self.conv_in(store_by_frame(z), chunk)
        # When a clip is decoded in windows, the output of a block is split in time, and each piece is decoded to frames
        # before the next one (depth first). So no block processes more frames than the window has latent frames,
        # although three blocks double time. Small pieces are not split, which would take time and save little memory.
        stack, frames = [(self.mid(x, chunk), chunk, 0)], []
        while stack:
            x, chunk, depth = stack.pop()
            if depth == len(self.blocks):
                frames.append(self.conv_out(F.silu(self.norm_out(x)), chunk))
            else:
                x, length = self.blocks[depth](x, chunk), x.shape[2]
                length = max(length, SMALL_PIECE // x[:, :, 0].numel())
                stack += [(*piece, depth + 1) for piece in reversed(chunk.pieces(x, length))]
        return torch.cat(frames, dim=2)


class CausalVideoVAE(nn.Module):
    """Encodes frames in [-1, 1] to a posterior over latents, and decodes latents to frames.

    No frame depends on a later one. A clip can therefore be coded in chunks of any number of latent frames with the
    same result; the memory needed then does not grow with the length of the clip.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_moments = CausalConv3d(2 * config.latent_channels, 2 * config.latent_channels, kernel=1)
        self.from_latents = CausalConv3d(config.latent_channels, config.latent_channels, kernel=1)
        self.decoder = Decoder(config)

    def encode(self, frames: Tensor, window: int | None = None, tile: Tile | int | None = None) -> Posterior:
        """Posterior over the latents of whole clips.

        Args:
            frames: (b 3 1+8k h w) in [-1, 1]; h and w multiples of 8.
            window: frames coded at a time after the first one, a multiple of 8; None codes all at once.
            tile: size of tiles in which larger frames are coded; an int chooses equal tiles with sides of at
                most that many px (`Tile.fitting`); None: no tiles.

        Returns:
            Posterior over latents (b c 1+k h/8 w/8).

        Raises:
            ValueError: the number of frames, the height, the width, the window or the tile does not fit.
        """
        space, time = self.config.space_factor, self.config.time_factor
        _, _, t, h, w = frames.shape
        if (t - 1) % time:
            raise ValueError(f"{t} frames: the VAE needs 1 + {time}k frames, for example {self.config.whole_frames(t)}")
        if h % space or w % space:
            raise ValueError(f"frames of {h}x{w} px: height and width must be multiples of {space}")
        if window is not None and (window < time or window % time):
            raise ValueError(f"window {window}: must be a positive multiple of {time} frames")

        def code(x: Tensor) -> Tensor:
            return _joined(self.encode_stream(_windows(x, window)), num_frames=1 + (t - 1) // time)

        if (sizes := self._tile(h, w, tile)) is None:
            return Posterior.from_moments(code(frames))
        in_px, in_latents = sizes
        return Posterior.from_moments(code_tiled(frames, code, in_px, in_latents))

    def decode(
        self,
        latents: Tensor,
        window: int | None = None,
        starts_clip: bool = True,
        tile: Tile | int | None = None,
    ) -> Tensor:
        """Frames of whole clips.

        Args:
            latents: (b c 1+k h w), not normalised.
            window: latent frames decoded at a time; None decodes all at once.
            starts_clip: False: the first latent frame lies inside a clip and is decoded to 8 frames instead of 1.
            tile: as in `encode`.

        Returns:
            (b 3 1+8k 8h 8w), nominally in [-1, 1], not clamped.

        Raises:
            ValueError: the window or the tile does not fit.
        """
        if window is not None and window < 1:
            raise ValueError(f"window {window}: must be at least 1 latent frame")

        space, time = self.config.space_factor, self.config.time_factor
        num_frames = time * latents.shape[2] - (time - 1 if starts_clip else 0)

        def code(x: Tensor) -> Tensor:
            return _joined(self.decode_stream(list(x.split(window or x.shape[2], dim=2)), starts_clip), num_frames)

        if (sizes := self._tile(latents.shape[3] * space, latents.shape[4] * space, tile)) is None:
            return code(latents)
        in_px, in_latents = sizes
        return code_tiled(latents, code, in_latents, in_px)

    def _tile(self, h: int, w: int, tile: Tile | int | None) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """(height, width) of a tile in px, and the same in latents; None if frames of h x w px need no tiles."""
        space = self.config.space_factor
        if isinstance(tile, int):
            tile = None if max(h, w) <= tile else Tile.fitting(h, w, tile, space)
        if tile is None or tile.covers(h, w):
            return None
        return (tile.height, tile.width), tile.in_latents(space)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Moments (b 2c t' h' w') of each chunk (b 3 t h w): 1 + 8k frames in the first, 8k in every later one."""
        for x, chunk in _with_past(chunks):
            yield self.to_moments(self.encoder(x, chunk), chunk)

    def decode_stream(self, chunks: Iterable[Tensor], starts_clip: bool = True) -> Iterator[Tensor]:
        """Decode chunks of latents (b c t h w) as they arrive. The frames concatenated equal the result of `decode`.

        A generator: it computes in the thread that iterates over it. To decode one unit while the next one is sampled,
        iterate in a thread with `torch.no_grad()` and, on a GPU, a CUDA stream of its own.
        """
        for z, chunk in _with_past(chunks, starts_clip):
            yield self.decoder(self.from_latents(z, chunk), chunk)


def _windows(x: Tensor, window: int | None) -> list[Tensor]:
    """Split (b c t h w) in time: 1 + window frames, then `window` frames each; the last window may be shorter."""
    t = x.shape[2]
    if window is None or t <= window + 1:
        return [x]
    return [x[:, :, : window + 1], *x[:, :, window + 1 :].split(window, dim=2)]


def _joined(parts: Iterator[Tensor], num_frames: int) -> Tensor:
    """Concatenate consecutive parts (b c t h w) of `num_frames` in total, without holding all parts in memory."""
    part = next(parts)
    if part.shape[2] == num_frames:
        return part
    whole, start = part.new_empty(*part.shape[:2], num_frames, *part.shape[3:]), 0
    while part is not None:
        whole[:, :, start : start + part.shape[2]] = part
        start += part.shape[2]
        part = next(parts, None)
    return whole


def _with_past(chunks: Iterable[Tensor], starts_clip: bool = True) -> Iterator[tuple[Tensor, Chunk]]:
    """Pairs of a chunk and the past frames of the convolutions, which are not stored if there is only one chunk."""
    is_only_chunk = isinstance(chunks, list) and len(chunks) == 1
    chunk = Chunk(starts_clip=starts_clip, keep_past=not is_only_chunk)
    for x in chunks:
        yield x, chunk
        chunk = chunk.next()
