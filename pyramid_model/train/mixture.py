"""Batches from clips of different sizes and sources, as a function of (seed, step, rank).

An epoch is a shuffled list of steps. Each step has samples of one shape, and a shape has as many steps as its samples
need. Within a shape, all workers together iterate over shuffled lists of its samples. Two workers get the same sample
at a step only where one list ends and the next begins, or if a source is repeated within a list.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pyramid_model.train.batches import shuffled, step_generator
from pyramid_model.train.config import MixConfig

Shape = tuple[int, ...]  # of a latent, c t h w


def num_tokens(shape: Shape) -> int:
    """Number of tokens of a latent (c t h w) at full resolution, with patches of 2x2."""
    _, t, h, w = shape
    return t * (h // 2) * (w // 2)


class BatchPlan:
    """Plan of batches, each with samples of one shape.

    Args:
        shapes: (c t h w) of every sample.
        sources: name of the source of every sample.
        mix: settings of the mixture.
        batch_size: samples per worker and step if `mix.token_budget` is empty.
        multiple_of: with a token budget, every batch size is a multiple of this.
        seed: seed of all shuffles.
        world_size: number of workers with different samples.

    Raises:
        ValueError: the sources in `mix` are not those of the samples, or `mix.image_share` needs images or videos that
            are missing.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        sources: Sequence[str],
        mix: MixConfig,
        batch_size: int,
        multiple_of: int,
        seed: int,
        world_size: int,
    ):
        self.seed, self.world_size = seed, world_size
        weights = _sample_weights(sources, mix.source_weights)
        groups: dict[Shape, dict[str, list[int]]] = {}
        for position, (shape, source) in enumerate(zip(shapes, sources, strict=True)):
            if weights[source] > 0:
                groups.setdefault(shape, {}).setdefault(source, []).append(position)
        self.shapes = sorted(groups)
        self.members = [groups[shape] for shape in self.shapes]
        self.batch_sizes = [_batch_size(shape, mix.token_budget, batch_size, multiple_of) for shape in self.shapes]
        self.shares = [
            {source: weights[source] * len(positions) for source, positions in members.items()}
            for members in self.members
        ]
        sizes = (size * world_size for size in self.batch_sizes)
        steps = [sum(share.values()) / size for share, size in zip(self.shares, sizes, strict=True)]
        self.num_steps = [
            max(1, round(count)) if count else 0 for count in _with_images(self.shapes, steps, mix.image_share)
        ]

    def pick(self, step: int, rank: int) -> list[int]:
        """Positions of one worker's samples at a step, all of one shape."""
        epoch, place = divmod(step, sum(self.num_steps))
        groups, occurrences = self._epoch(epoch)
        group, size = int(groups[place]), self.batch_sizes[int(groups[place])]
        turn = epoch * self.num_steps[group] + int(occurrences[place])
        first = (turn * self.world_size + rank) * size
        return [self._walk(group, position) for position in range(first, first + size)]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its training
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Group of every step of an epoch, and how many earlier steps of the epoch had that group; (steps,) each."""
        order = shuffled(sum(self.num_steps), self.seed + 1, epoch).numpy()
        groups = np.repeat(np.arange(len(self.num_steps)), self.num_steps)[order]
        occurrences = np.zeros(len(groups), np.int64)
        for group, count in enumerate(self.num_steps):
            occurrences[groups == group] = np.arange(count)
        return groups, occurrences

    def _walk(self, group: int, position: int) -> int:
        """The sample at a position of the endless sequence of a group's shuffled lists."""
        block, place = divmod(position, sum(map(len, self.members[group].values())))
        return int(self._block(group, block)[place])

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _block(self, group: int, block: int) -> np.ndarray:
        """One shuffled list of a group: as many samples as the group has, from each source by its share."""
        members = self.members[group]
        counts = _counts(self.shares[group], sum(map(len, members.values())), self.seed, block)
        samples = np.array(
            [
                positions[int(shuffled(len(positions), self.seed, block + i // len(positions))[i % len(positions)])]
                for positions, count in zip(members.values(), counts, strict=True)
                for i in range(count)
            ]
        )
        if len(members) == 1:  # already in random order
            return samples
        return samples[shuffled(len(samples), self.seed + 2, block).numpy()]


def _batch_size(shape: Shape, token_budget: int | None, batch_size: int, multiple_of: int) -> int:
    if token_budget is None:
        return batch_size
    return max(1, token_budget // num_tokens(shape) // multiple_of) * multiple_of


def _sample_weights(sources: Sequence[str], shares: Mapping[str, float]) -> dict[str, float]:
    """Relative frequency of the samples of each source; the mean over all samples is 1."""
    sizes = Counter(sources)
    if not shares:
        return dict.fromkeys(sizes, 1.0)
    if set(sizes) != set(shares):
        raise ValueError(
            f"mix.source_weights names {sorted(shares)}; it must name every source of the training clips, which are "
            f"{sorted(sizes)}. Give the weight 0 to a source that should not be used"
        )
    total = sum(shares.values())
    return {name: shares[name] / total * len(sources) / size for name, size in sizes.items()}


def _with_images(shapes: Sequence[Shape], steps: Sequence[float], image_share: float | None) -> list[float]:
    """Steps of each shape, scaled so that single frames have the share `image_share` of all steps."""
    if image_share is None:
        return list(steps)
    is_image = [shape[1] == 1 for shape in shapes]
    images = sum(count for count, image in zip(steps, is_image, strict=True) if image)
    videos = sum(steps) - images
    if (image_share > 0 and not images) or (image_share < 1 and not videos):
        raise ValueError(
            f"mix.image_share {image_share:g} needs images and videos among the training clips, but there are "
            f"{'no images' if not images else 'only images'}. Leave it empty, or select others"
        )
    # Neither kind gets fewer steps than before, so that an epoch contains every sample.
    total = max(images / image_share if image_share else 0.0, videos / (1 - image_share) if image_share < 1 else 0.0)
    target = {True: total * image_share, False: total * (1 - image_share)}
    present = {True: images, False: videos}
    return [count / present[image] * target[image] for count, image in zip(steps, is_image, strict=True)]


def _counts(shares: Mapping[str, float], total: int, seed: int, block: int) -> list[int]:
    """Integers that sum to `total`, in proportion to the shares; their mean over all blocks is exact."""
    edges = np.cumsum([0.0, *shares.values()]) * total / sum(shares.values())
    edges[-1] = total
    offset = float(torch.rand((), generator=step_generator(seed + 3, block)))
    return np.diff(np.floor(edges + offset)).astype(int).tolist()
