"""Which samples a step sees when clips of many sizes and sources are mixed: a function of (seed, step, rank) alone.

An epoch is a shuffled list of steps, each of one shape, as many of a shape as its samples need. Within a shape the
workers together walk through one shuffled list after the other, so no two of them see the same sample at a step, but
where one list ends and the next begins, or where a source comes more often than it has samples.
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
    """Tokens of a latent at full resolution: patches of 2 x 2."""
    _, t, h, w = shape
    return t * (h // 2) * (w // 2)


class BatchPlan:
    """Batches of one shape each.

    Args:
        shapes: (c t h w) of every sample.
        sources: name of the source of every sample.
        mix: what is mixed, and how.
        batch_size: samples a worker and step where `mix.token_budget` does not decide.
        multiple_of: every batch is a multiple of this.
        seed: fixes all shuffles.
        world_size: workers with samples of their own.

    Raises:
        ValueError: `mix` names a source that is not there, or leaves one out, or asks for images where there are none.
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
        """Group of every step of an epoch, and how often it came before in the epoch."""
        order = shuffled(sum(self.num_steps), self.seed + 1, epoch).numpy()
        groups = np.repeat(np.arange(len(self.num_steps)), self.num_steps)[order]
        occurrences = np.zeros(len(groups), np.int64)
        for group, count in enumerate(self.num_steps):
            occurrences[groups == group] = np.arange(count)
        return groups, occurrences

    def _walk(self, group: int, position: int) -> int:
        """The sample at a position of the endless walk through a group."""
        block, place = divmod(position, sum(map(len, self.members[group].values())))
        return int(self._block(group, block)[place])

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _block(self, group: int, block: int) -> np.ndarray:
        """As many samples as the group has, its sources in their shares, in random order."""
        members = self.members[group]
        counts = _counts(self.shares[group], sum(map(len, members.values())), self.seed, block)
        found = [
            positions[int(shuffled(len(positions), self.seed, block + i // len(positions))[i % len(positions)])]
            for positions, count in zip(members.values(), counts, strict=True)
            for i in range(count)
        ]
        # One source is in random order already.
        return np.array(found)[shuffled(len(found), self.seed + 2, block).numpy() if len(members) > 1 else slice(None)]


def _batch_size(shape: Shape, token_budget: int | None, batch_size: int, multiple_of: int) -> int:
    if token_budget is None:
        return batch_size
    return max(1, token_budget // num_tokens(shape) // multiple_of) * multiple_of


def _sample_weights(sources: Sequence[str], shares: Mapping[str, float]) -> dict[str, float]:
    """How often a sample of each source comes, 1 on the average of all samples."""
    sizes = Counter(sources)
    if not shares:
        return dict.fromkeys(sizes, 1.0)
    if set(sizes) != set(shares):
        raise ValueError(
            f"mix.source_weights must name every source of the training clips, once: {sorted(sizes)}; it names "
            f"{sorted(shares)}. Give a source that you do not want the weight 0"
        )
    total = sum(shares.values())
    return {name: shares[name] / total * len(sources) / size for name, size in sizes.items()}


def _with_images(shapes: Sequence[Shape], steps: Sequence[float], image_share: float | None) -> list[float]:
    """Steps by shape, scaled so that single frames have their share of all."""
    if image_share is None:
        return list(steps)
    is_image = [shape[1] == 1 for shape in shapes]
    images = sum(count for count, image in zip(steps, is_image, strict=True) if image)
    videos = sum(steps) - images
    if (image_share > 0 and not images) or (image_share < 1 and not videos):
        raise ValueError(
            f"mix.image_share {image_share:g} needs images and videos among the training clips: there are "
            f"{'no images' if not images else 'only images'}. Leave it empty, or select others"
        )
    # The scarcer of the two keeps its number of steps, so that an epoch leaves nothing out.
    total = max(images / image_share if image_share else 0.0, videos / (1 - image_share) if image_share < 1 else 0.0)
    wanted = {True: total * image_share, False: total * (1 - image_share)}
    there = {True: images, False: videos}
    return [count / there[image] * wanted[image] for count, image in zip(steps, is_image, strict=True)]


def _counts(shares: Mapping[str, float], total: int, seed: int, block: int) -> list[int]:
    """Whole numbers that add up to the total; over the blocks each has its share on average, however small."""
    edges = np.cumsum([0.0, *shares.values()]) * total / sum(shares.values())
    edges[-1] = total
    offset = float(torch.rand((), generator=step_generator(seed + 3, block)))
    return np.diff(np.floor(edges + offset)).astype(int).tolist()
