"""Batches of a training step and their random numbers, as functions of (seed, step, index of the batch).

There is no state, so a run that is interrupted and resumed at any step continues bit for bit as without interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from pyramid_model.text import TextFeatures, stack_features
from pyramid_model.vae.pixels import to_unit_range


def step_generator(seed: int, step: int, index: int = 0) -> Generator:
    """CPU generator for one batch of a step; a different one for each (seed, step, index)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def shuffled(num_items: int, seed: int, epoch: int) -> Tensor:
    """A random permutation of 0 … num_items - 1, (num_items,) int64; a different one for every seed and epoch."""
    return torch.randperm(num_items, generator=step_generator(seed, epoch, -1))


def vae_batch(
    clips: Sequence[np.ndarray], indices: Sequence[int], num_frames: int, generator: Generator, crop: int | None = None
) -> Tensor:
    """Random excerpts of clips; each is mirrored with probability 1/2.

    Args:
        clips: uint8 (t h w 3), all of one height and width, each with at least num_frames frames.
        indices: positions of the batch's clips in `clips`.
        num_frames: frames of an excerpt, 1 + 8k.
        generator: draws start frame, position of the crop, and mirroring.
        crop: side of a square crop in px, at most that of the frames; None: whole frames.

    Returns:
        (b 3 t h w) in [-1, 1].

    Raises:
        ValueError: a clip is too short.
    """
    excerpts = []
    for index in indices:
        clip = clips[index]
        num_starts = len(clip) - num_frames + 1
        if num_starts < 1:
            raise ValueError(
                f"clip {index} has {len(clip)} frames, fewer than the {num_frames} of a training excerpt: "
                "select longer clips or lower num_frames"
            )
        start, top, left = (_random_below(n, generator) for n in (num_starts, *_num_crop_positions(clip, crop)))
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        excerpt = clip[start : start + num_frames, top:, left:][:, :crop, :crop]
        excerpts.append(to_unit_range(excerpt[:, :, ::-1] if mirrored else excerpt))
    return torch.stack(excerpts)


def _num_crop_positions(clip: np.ndarray, crop: int | None) -> tuple[int, int]:
    """Number of possible positions of the crop's top edge and of its left edge."""
    height, width = clip.shape[1:3]
    return (max(0, height - crop) + 1, max(0, width - crop) + 1) if crop else (1, 1)


def _random_below(bound: int, generator: Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))


def dit_batch(
    latents: Sequence[Tensor],
    texts: Sequence[tuple[Tensor, Tensor]],
    null: tuple[Tensor, Tensor],
    indices: Sequence[int],
    generator: Generator,
    dropout: float = 0.1,
) -> tuple[Tensor, TextFeatures]:
    """Latents with their texts. Some texts are replaced by the empty text, which trains the model for guidance.

    Args:
        latents: (c t h w), all of one shape.
        texts: features of the caption of each latent, (embeds (n d), pooled (p)).
        null: features of the empty text.
        indices: positions of the batch's samples.
        generator: draws which texts are replaced.
        dropout: probability that a text is replaced by `null`.

    Returns:
        (b c t h w) and b rows of text features.
    """
    dropped = (torch.rand(len(indices), generator=generator) < dropout).tolist()
    rows = [null if drop else texts[index] for index, drop in zip(indices, dropped, strict=True)]
    return torch.stack([latents[index] for index in indices]), stack_features(rows)
