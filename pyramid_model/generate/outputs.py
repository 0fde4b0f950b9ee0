"""Output of a clip: frames, a tensor, or a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pyramid_model.generate.batch import ClipBatch
from pyramid_model.generate.decoding import Consume, Convert
from pyramid_model.vae.pixels import to_uint8
from pyramid_model.video.video import write_image, write_video


def convert_and_consumers(batch: ClipBatch) -> tuple[Convert, list[Consume]]:
    """(conversion of decoded frames, consumer of the frames of each clip); no consumers if only latents are output."""
    if batch.paths:
        return as_frames, [into_file(path, batch.request.fps) for path in batch.paths]
    if batch.output == "latents":
        return as_frames, []
    if batch.output == "tensor":
        return as_floats, [joined_floats] * len(batch.prompts)
    return as_frames, [joined_frames] * len(batch.prompts)


def as_frames(decoded: Tensor) -> np.ndarray:
    """(3 t h w), nominally in [-1, 1] -> uint8 (t h w 3)."""
    return to_uint8(decoded[None])[0]


def as_floats(decoded: Tensor) -> Tensor:
    """(3 t h w), nominally in [-1, 1] -> float32 in [0, 1] on the CPU, same shape."""
    return (decoded.float() / 2 + 0.5).clamp(0, 1).cpu()


def joined_frames(parts: Iterable[np.ndarray]) -> np.ndarray:
    """All frames of a clip, uint8 (t h w 3)."""
    return np.concatenate(list(parts))


def joined_floats(parts: Iterable[Tensor]) -> Tensor:
    """All frames of a clip, float32 (3 t h w)."""
    return torch.cat(list(parts), dim=1)


def into_file(uri: str, fps: int) -> Consume:
    """A consumer of uint8 frames (t h w 3) that writes them as they arrive and returns `uri`; .png takes one frame."""

    def write(parts: Iterator[np.ndarray]) -> str:
        if uri.endswith(".png"):
            (frame,) = joined_frames(parts)
            write_image(uri, frame)
        else:
            write_video(uri, (frame for part in parts for frame in part), fps)
        return uri

    return write
