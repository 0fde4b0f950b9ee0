"""Batches from clips of different sizes and sources, as a function of (seed, step, index of the batch).

An epoch is a shuffled list of steps. All batches of a step have samples of one shape, so that they cost the same, and a
shape has as many steps as its samples need. Within a shape, the batches iterate over shuffled lists of its samples. A
step has a sample twice only where one list ends and the next begins, if a source is repeated within a list, or if there
are fewer samples than a step needs.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from pyramid_model.train.batches import shuffled, step_generator
from pyramid_model.train.config import MixConfig

Shape = tuple[int, ...]  # of a latent, c t h w
Sample = TypeVar("Sample")


def num_tokens(shape: Shape) -> int:
    """Number of tokens of a latent (c t h w) at full resolution, with patches of 2x2."""
    _, t, h, w = shape
    return t * (h // 2) * (w // 2)


class BatchPlan:
    """Plan of batches, each with samples of one shape.

    Args:
        shapes: (c t h w) of every sample; samples of one shape can be stacked.
        sources: name of the source of every sample.
        mix: settings of the mixture.
        batch_size: samples of a batch if `mix.token_budget` is empty.
        multiple_of: with a token budget, every batch size is a multiple of this.
        seed: seed of all shuffles.
        num_batches: batches of a step with different samples.
        cost: of a sample of a shape; with a token budget, batches of all shapes cost the same.

    Raises:
        ValueError: there are no samples, the sources in `mix` are not those of the samples, or `mix.image_share` needs
            images or videos that are missing.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        sources: Sequence[str],
        mix: MixConfig,
        batch_size: int,
        multiple_of: int,
        seed: int,
        num_batches: int,
        cost: Callable[[Shape], float] = num_tokens,
    ):
        if not shapes:
            raise ValueError("the training set is empty: select at least one clip for the split `train`")
        self.seed, self.num_batches = seed, num_batches
        weights = _sample_weights(sources, mix.source_weights)
        groups: dict[Shape, dict[str, list[int]]] = {}
        for position, (shape, source) in enumerate(zip(shapes, sources, strict=True)):
            if weights[source] > 0:
                groups.setdefault(shape, {}).setdefault(source, []).append(position)
        self.shapes = sorted(groups)
        self.members = [
            {source: np.array(positions, np.int32) for source, positions in groups[shape].items()}
            for shape in self.shapes
        ]
        self.positions_by_group = [np.sort(np.concatenate(list(members.values()))) for members in self.members]
        self._group = np.full(len(shapes), -1, np.int32)  # of every sample
        for group, positions in enumerate(self.positions_by_group):
            self._group[positions] = group
        self.costs = [cost(shape) for shape in self.shapes]
        self.batch_sizes = self._batch_sizes(mix.token_budget, batch_size, multiple_of)
        self.shares = [
            {source: weights[source] * len(positions) for source, positions in members.items()}
            for members in self.members
        ]
        sizes = (size * num_batches for size in self.batch_sizes)
        steps = [sum(share.values()) / size for share, size in zip(self.shares, sizes, strict=True)]
        self.num_steps = [
            max(1, round(count)) if count else 0 for count in _with_images(self.shapes, steps, mix.image_share)
        ]

    def _batch_sizes(self, token_budget: int | None, batch_size: int, multiple_of: int) -> list[int]:
        """Samples in a batch of each shape."""
        if token_budget is None:
            return [batch_size] * len(self.shapes)
        dearest = int(np.argmax(self.costs))
        most = token_budget / num_tokens(self.shapes[dearest]) * self.costs[dearest]
        # Rounded to 9 digits first: 7 samples that cost a seventh each are 7.
        return [max(1, math.floor(round(most / cost, 9)) // multiple_of) * multiple_of for cost in self.costs]

    def pick(self, step: int, index: int) -> list[int]:
        """Positions of the samples of a batch, all of one shape."""
        epoch, place = divmod(step, sum(self.num_steps))
        groups, occurrences = self._epoch(epoch)
        group, size = int(groups[place]), self.batch_sizes[int(groups[place])]
        turn = epoch * self.num_steps[group] + int(occurrences[place])
        first = (turn * self.num_batches + index) * size
        return [self._walk(group, position) for position in range(first, first + size)]

    def largest(self) -> list[int]:
        """Positions of the samples of a batch that needs the most memory."""
        used = [group for group, steps in enumerate(self.num_steps) if steps]
        group = max(used, key=lambda group: self.batch_sizes[group] * self.costs[group])
        return np.resize(self.positions_by_group[group], self.batch_sizes[group]).tolist()

    def readable(self, position: int, read: Callable[[int], Sample | None]) -> tuple[int, Sample] | None:
        """(position, sample) of a sample. If it cannot be read, the next sample of its shape that can be read.

        read: returns the sample at a position, or None. The result is None if no sample of the shape can be read.
        """
        same_shape = self.positions_by_group[self._group[position]]
        place = int(np.searchsorted(same_shape, position))
        for offset in range(len(same_shape)):
            candidate = int(same_shape[(place + offset) % len(same_shape)])
            if (sample := read(candidate)) is not None:
                return candidate, sample
        return None

    def describe(
        self, buckets: Sequence[str], selected: Mapping[str, int], num_steps: int, with_tokens: bool = True
    ) -> list[str]:
        """The plan as lines for people.

        Args:
            buckets: of every sample.
            selected: number of selected clips of each bucket, with those that have no sample.
            num_steps: steps of the training.
            with_tokens: whether the samples are latents, whose tokens count.
        """
        used = [group for group, steps in enumerate(self.num_steps) if steps]
        num_drawn = self.num_batches * sum(self.num_steps[group] * self.batch_sizes[group] for group in used)
        num_drawn *= num_steps / sum(self.num_steps)
        epochs = num_drawn / sum(len(self.positions_by_group[group]) for group in used)
        lines = [
            f"{len(self._group):,} clips; {num_steps:,} steps of {self.num_batches} batches are {epochs:.3g} epochs"
        ]
        sampled = Counter(buckets)
        for group, shape in enumerate(self.shapes):
            positions, size = self.positions_by_group[group], self.batch_sizes[group]
            bucket, count = buckets[positions[0]], len(positions)
            line = f"{bucket}: {count:,} clips, {size} in a batch"
            line += f" of {size * num_tokens(shape):,} tokens, " if with_tokens else ", "
            line += f"{self.num_steps[group]:,} steps an epoch" if self.num_steps[group] else "not used (mix)"
            if count < size * self.num_batches:
                line += f"; fewer than the {size * self.num_batches} of a step, so some repeat"
            lines.append(line)
        missing = {bucket: count - sampled[bucket] for bucket, count in selected.items()}
        return lines + [f"{bucket}: {count:,} selected clips lack data" for bucket, count in missing.items() if count]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its training
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Group of every step of an epoch, and how many earlier steps of the epoch had that group; (steps,) each."""
        order = shuffled(sum(self.num_steps), self.seed + 1, epoch).numpy()
        groups = np.repeat(np.arange(len(self.num_steps)), self.num_steps)[order]
        occurrences = np.zeros(len(groups), np.int32)
        for group, count in enumerate(self.num_steps):
            occurrences[groups == group] = np.arange(count)
        return groups, occurrences

    def _walk(self, group: int, position: int) -> int:
        """The sample at a position in the sequence of a group's shuffled lists, one list after another."""
        block, place = divmod(position, len(self.positions_by_group[group]))
        return int(self._block(group, block)[place])

    @functools.lru_cache(maxsize=64)  # noqa: B019 - of each size of clips one or two
    def _block(self, group: int, block: int) -> np.ndarray:
        """One shuffled list of a group: as many samples as the group has, from each source by its share."""
        members = self.members[group]
        counts = _counts(self.shares[group], len(self.positions_by_group[group]), self.seed, block)
        samples = np.concatenate(
            [self._drawn(positions, count, block) for positions, count in zip(members.values(), counts, strict=True)]
        )
        if len(members) == 1:  # already in random order
            return samples
        return samples[shuffled(len(samples), self.seed + 2, block).numpy()]

    def _drawn(self, positions: np.ndarray, count: int, block: int) -> np.ndarray:
        """`count` samples of one source. A sample repeats only after every other one was drawn as often."""
        rounds = [shuffled(len(positions), self.seed, block + i) for i in range(-(-count // len(positions)))]
        return positions[torch.cat(rounds).numpy()[:count]] if rounds else positions[:0]


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
