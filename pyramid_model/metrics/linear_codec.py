"""The linear codec that a VAE has to beat: principal components of blocks of pixels, at the same number of latents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pyramid_model.config import VAEConfig
from pyramid_model.metrics.quality import psnr

MAX_BLOCKS = 2_000  # of a clip on which the components are fitted, evenly spaced


@dataclass(frozen=True)
class LinearCodec:
    """Truncated Karhunen-Loeve transform of blocks of `time` frames of `space` x `space` px, fitted to clips.

    The first frame of a clip is a block of its own with a transform of its own, as the first latent frame of the VAE
    is. Each block is restored from as many numbers as the VAE has latent channels.

    first, rest: (mean (pixels,), components (latents pixels)) of the blocks.
    """

    space: int
    time: int
    first: tuple[np.ndarray, np.ndarray]
    rest: tuple[np.ndarray, np.ndarray]

    @classmethod
    def fit(cls, clips: Iterable[np.ndarray], vae: VAEConfig) -> LinearCodec:
        """Fit to training clips, uint8 (t h w 3) each with at least 1 + `vae.time_factor` frames, one after another.

        Raises:
            ValueError: no clip is that long.
        """
        space, time = vae.space_factor, vae.time_factor
        first, rest = _Moments(3 * space**2), _Moments(3 * space**2 * time)
        for clip in clips:
            first.add(_blocks(clip[:1], space, 1))
            rest.add(_blocks(clip[1 : 1 + (len(clip) - 1) // time * time], space, time))
        if not rest.num_blocks:
            raise ValueError(f"a linear codec is fitted to clips of at least {1 + time} frames")
        return cls(space, time, first.components(vae.latent_channels), rest.components(vae.latent_channels))

    def restore(self, clip: np.ndarray) -> np.ndarray:
        """A clip of 1 + k * time frames, uint8 (t h w 3), coded and decoded: same shape."""
        parts = ((clip[:1], 1, self.first), (clip[1:], self.time, self.rest))
        return np.concatenate([self._coded(*part) for part in parts])

    def validate(self, clips: Sequence[np.ndarray]) -> dict[str, float]:
        """{"val_psnr": dB}, mean over held-out clips; frames after the last whole block are left out."""
        whole = [clip[: len(clip) - (len(clip) - 1) % self.time] for clip in clips]
        return {"val_psnr": float(np.mean([psnr(clip, self.restore(clip)) for clip in whole]))}

    def _coded(self, frames: np.ndarray, time: int, transform: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        if not len(frames):
            return frames
        mean, components = transform
        blocks = _blocks(frames, self.space, time)
        restored = (blocks - mean) @ components.T @ components + mean
        t, h, w, _ = frames.shape
        grid = restored.reshape(t // time, h // self.space, w // self.space, time, self.space, self.space, 3)
        pixels = grid.transpose(0, 3, 1, 4, 2, 5, 6).reshape(frames.shape)
        return pixels.round().clip(0, 255).astype(np.uint8)


def _blocks(frames: np.ndarray, space: int, time: int) -> np.ndarray:
    """uint8 (t h w 3) -> float32 (blocks time*space*space*3)."""
    t, h, w, _ = frames.shape
    grid = frames.reshape(t // time, time, h // space, space, w // space, space, 3)
    return grid.transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, time * space * space * 3).astype(np.float32)


class _Moments:
    """Sums over blocks of pixels, from which their principal components follow without keeping the blocks."""

    def __init__(self, num_pixels: int):
        self.num_blocks = 0
        self.total = np.zeros(num_pixels)
        self.products = np.zeros((num_pixels, num_pixels))

    def add(self, blocks: np.ndarray) -> None:
        """Add the blocks (n pixels) of a clip, at most MAX_BLOCKS of them."""
        blocks = blocks[:: max(1, -(-len(blocks) // MAX_BLOCKS))].astype(np.float64)
        self.num_blocks += len(blocks)
        self.total += blocks.sum(axis=0)
        self.products += blocks.T @ blocks

    def components(self, num_kept: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and principal components of the blocks."""
        mean = self.total / self.num_blocks
        _, axes = np.linalg.eigh(self.products / self.num_blocks - np.outer(mean, mean))
        return mean.astype(np.float32), axes[:, ::-1][:, :num_kept].T.astype(np.float32)
