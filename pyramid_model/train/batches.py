"""Which samples a training step sees, and with which random numbers: functions of (seed, step, rank) alone.

Nothing here keeps state, so a run that was killed and resumed at any step goes on bit for bit as if undisturbed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from pyramid_model.text import TextFeatures, stack_features
from pyramid_model.vae.pixels import to_unit_range


def step_generator(seed: int, step: int, rank: int = 0) -> Generator:
    """CPU random numbers of one step on one rank. Two different triples never share a stream."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def batch_indices(
    num_items: int, batch_size: int, seed: int, step: int, rank: int = 0, world_size: int = 1
) -> list[int]:
    """Positions of one rank's samples at one step.

    All ranks together walk through one shuffled list after the other, so every sample comes up equally often.

    Args:
        num_items: size of the training set.
        batch_size: samples a rank and step; may exceed num_items.
        seed: fixes the shuffles.
        step: optimiser step, from 0.
        rank: this worker.
        world_size: number of workers.

    Raises:
        ValueError: there is nothing to train on.
    """
    if num_items < 1:
        raise ValueError("the training set is empty: select at least one clip for the split `train`")
    first = (step * world_size + rank) * batch_size
    picked = []
    for position in range(first, first + batch_size):
        epoch, place = divmod(position, num_items)
        picked.append(int(shuffled(num_items, seed, epoch)[place]))
    return picked


@functools.lru_cache(maxsize=64)  # neighbouring steps share one or two for each size of clips
def shuffled(num_items: int, seed: int, epoch: int) -> Tensor:
    """The numbers below num_items in a random order of their own for every seed and epoch."""
    return torch.randperm(num_items, generator=step_generator(seed, epoch, -1))


def vae_batch(
    clips: Sequence[np.ndarray], indices: Sequence[int], num_frames: int, generator: Generator, crop: int | None = None
) -> Tensor:
    """Random cuts out of clips, half of them mirrored.

    Args:
        clips: uint8 (t h w 3), all of one size, each at least num_frames long.
        indices: which clips.
        num_frames: length of a cut, 1 + 8k.
        generator: draws the start frame, the place of the crop and the mirroring.
        crop: side in px of the square that is kept, at most the frame's own; None keeps whole frames.

    Returns:
        (b 3 t h w) in [-1, 1].

    Raises:
        ValueError: a clip is too short.
    """
    cuts = []
    for index in indices:
        clip = clips[index]
        spare = len(clip) - num_frames
        if spare < 0:
            raise ValueError(f"clip {index} has {len(clip)} frames, training takes {num_frames}: select longer clips")
        start, top, left = (_below(n, generator) for n in (spare + 1, *_room(clip, crop)))
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        cut = clip[start : start + num_frames, top:, left:][:, :crop, :crop]
        cuts.append(to_unit_range(cut[:, :, ::-1] if mirrored else cut))
    return torch.stack(cuts)


def _room(clip: np.ndarray, crop: int | None) -> tuple[int, int]:
    """Number of places for a crop's top and left edge."""
    height, width = clip.shape[1:3]
    return (max(0, height - crop) + 1, max(0, width - crop) + 1) if crop else (1, 1)


def _below(bound: int, generator: Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))


def dit_batch(
    latents: Sequence[Tensor],
    texts: Sequence[tuple[Tensor, Tensor]],
    null: tuple[Tensor, Tensor],
    indices: Sequence[int],
    generator: Generator,
    dropout: float = 0.1,
) -> tuple[Tensor, TextFeatures]:
    """Latents with their texts, some of which are dropped so that guidance has an unconditional model to push from.

    Args:
        latents: (c t h w), all of one shape.
        texts: features of the caption of each latent, (embeds (n d), pooled (p)).
        null: features of the empty text.
        indices: which samples.
        generator: decides which texts are dropped.
        dropout: probability that a text is replaced by `null`.

    Returns:
        (b c t h w) and b rows of text features.
    """
    dropped = (torch.rand(len(indices), generator=generator) < dropout).tolist()
    rows = [null if drop else texts[index] for index, drop in zip(indices, dropped, strict=True)]
    return torch.stack([latents[index] for index in indices]), stack_features(rows)
