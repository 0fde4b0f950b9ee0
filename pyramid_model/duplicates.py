"""Which clips show the same: pairs that are near by perceptual hash or by embedding, and the groups that they form.

Clips are numbers here, 0 … num_clips - 1. Nothing compares all pairs: hashes are compared where some of their lowest
frequencies agree, embeddings within a cluster.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 64  # neighbours in the order of a band that are compared: all of a small bucket, the nearest of a large one
PAIRS_AT_ONCE = 512
ROWS_AT_ONCE = 1024
CLIPS_PER_CLUSTER = 2000


class Pairs(NamedTuple):
    """Clips that show the same, each pair once."""

    first: np.ndarray  # (p,) int64, below `second`
    second: np.ndarray
    similarity: np.ndarray  # (p,) float64, 0..1


def near_by_hash(hashes: Sequence[np.ndarray], max_distance: int, min_share: float) -> Pairs:
    """Pairs of clips where most hashes of the one with fewer are near to one of the other's.

    Candidates agree in three of the eight lowest rows of frequencies of one hash: none that differ in five bits there
    are missed, and of those that differ in eight about half, in one of many frames. The order of frames does not count.

    Args:
        hashes: by clip, (n, 32) uint8: bytes of n hashes of 16 by 16 frequencies; a clip with n = 0 is in no pair.
        max_distance: bits of 256 that may differ.
        min_share: share of the hashes that must be near, 0..1.

    Returns:
        Pairs; the similarity is the share of equal bits, mean over the hashes of the clip with fewer.
    """
    first, second = _candidates(hashes, max_distance // 4 + 4)
    counts = np.array([len(one) for one in hashes], np.int64)
    # The clip with fewer hashes is the one whose share counts.
    swap = counts[first] > counts[second]
    fewer, more = np.where(swap, second, first), np.where(swap, first, second)
    padded = _padded(hashes, int(counts.max(initial=0)))
    near, distance = np.zeros(len(fewer)), np.zeros(len(fewer))
    for at in range(0, len(fewer), PAIRS_AT_ONCE):
        part = slice(at, at + PAIRS_AT_ONCE)
        few, many = fewer[part], more[part]
        width, depth = int(counts[few].max()), int(counts[many].max())
        found = _distances(padded[few, :width], padded[many, :depth])
        found = np.where(np.arange(depth) < counts[many][:, None, None], found, 256).min(axis=2)
        real = np.arange(width) < counts[few][:, None]
        near[part] = ((found <= max_distance) & real).sum(axis=1) / counts[few]
        distance[part] = (found * real).sum(axis=1) / counts[few]
    same = near >= min_share
    return Pairs(first[same], second[same], 1 - distance[same] / 256)


def _distances(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Bits that differ between hashes of paired clips; (p, n, 4) and (p, m, 4) uint64 -> (p, n, m) uint16."""
    words = [np.bitwise_count(few[:, :, None, word] ^ many[:, None, :, word]) for word in range(4)]
    return np.stack(words).sum(axis=0, dtype=np.uint16)


def _padded(hashes: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Hashes as one array of words, (num_clips, width, 4) uint64; what lies behind a clip's own is 0."""
    padded = np.zeros((len(hashes), width, 32), np.uint8)
    for row, own in zip(padded, hashes, strict=True):
        row[: len(own)] = own
    return padded.view(np.uint64)


def _candidates(hashes: Sequence[np.ndarray], max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of clips, first < second, with a hash each that are near in the lowest 8 by 8 frequencies."""
    clip = np.repeat(np.arange(len(hashes)), [len(one) for one in hashes])
    # A row has 16 bits, so every other byte holds its lower half.
    lowest = np.concatenate([np.empty((0, 32), np.uint8), *hashes])[:, 0:16:2]
    values = np.ascontiguousarray(lowest).view(np.uint64).reshape(-1)
    # One entry for frames of a clip that look alike: a still clip would fill a bucket on its own.
    values, clip = np.unique(np.stack([values, clip.astype(np.uint64)]), axis=1)
    rows = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
    found = np.empty(0, np.int64)
    for band in itertools.combinations(range(8), 3):
        rest = [row for row in range(8) if row not in band]
        # Little-endian: the last three bytes weigh most, so that sorting puts equal bands side by side.
        turned = np.ascontiguousarray(rows[:, [*rest, *band]]).view(np.uint64).reshape(-1)
        order = np.argsort(turned, kind="stable")
        new = list(_neighbours(turned[order], clip[order].astype(np.int64), max_distance, len(hashes)))
        found = np.unique(np.concatenate([found, *new]))
    return found // max(1, len(hashes)), found % max(1, len(hashes))


def _neighbours(values: np.ndarray, clip: np.ndarray, max_distance: int, num_clips: int) -> Iterator[np.ndarray]:
    """Codes (first * num_clips + second) of the clips of near hashes within one band; values sorted by it."""
    keys = values >> np.uint64(40)
    at = np.arange(len(values))
    for step in range(1, WINDOW + 1):
        at = at[at + step < len(values)]
        at = at[keys[at] == keys[at + step]]
        if not len(at):
            return
        near = at[np.bitwise_count(values[at] ^ values[at + step]) <= max_distance]
        one, other = clip[near], clip[near + step]
        low, high = np.minimum(one, other), np.maximum(one, other)
        yield np.unique(low[low < high] * num_clips + high[low < high])


def across_videos(pairs: Pairs, video: np.ndarray) -> Pairs:
    """Pairs of clips from two videos where either clip is the best match in its video for the other one.

    A camera that stands still gives clips that all look alike: those of one video are no copies of each other, and a
    copy of the video has one clip that fits best. Of equal matches all count.

    Args:
        pairs: near clips.
        video: number of the video of each clip.
    """
    first, second, similarity = (column[video[pairs.first] != video[pairs.second]] for column in pairs)
    best = np.zeros(len(first), bool)
    for clip, other in ((first, video[second]), (second, video[first])):
        _, key = np.unique(np.stack([clip, other]), axis=1, return_inverse=True)
        most = np.zeros(key.max(initial=-1) + 1)
        np.maximum.at(most, key.ravel(), similarity)
        best |= similarity == most[key.ravel()]
    return Pairs(first[best], second[best], similarity[best])


def near_by_embedding(vectors: np.ndarray, max_distance: float, num_clusters: int | None = None) -> Pairs:
    """Pairs of clips in one k-means cluster whose cosine is at least 1 - max_distance.

    Args:
        vectors: (num_clips, d), of any length but not zero; their order decides the clusters.
        max_distance: the epsilon of SemDeDup.
        num_clusters: None: one for every 2,000 clips, so that few clips are compared as all pairs.

    Source: SemDeDup, arXiv:2303.09540, section 3.
    """
    unit = vectors.astype(np.float32) / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = [
        pairs
        for members in _clusters(unit, num_clusters or -(-len(unit) // CLIPS_PER_CLUSTER))
        for pairs in _near_in(unit, members, 1 - max_distance)
    ]
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _clusters(unit: np.ndarray, num_clusters: int) -> Iterator[np.ndarray]:
    """Members of each cluster, ascending."""
    if num_clusters < 2 or len(unit) <= num_clusters:
        yield np.arange(len(unit))
        return
    from sklearn.cluster import KMeans

    # k-means++ starts once by default; the seed makes the clusters the same for the same vectors.
    labels = KMeans(num_clusters, max_iter=50, random_state=0).fit_predict(unit)
    order = np.argsort(labels, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _near_in(unit: np.ndarray, members: np.ndarray, min_cosine: float) -> Iterator[Pairs]:
    """Near pairs of one cluster, by blocks of rows: the whole matrix of a large cluster would not fit."""
    own = unit[members]
    for start in range(0, len(own), ROWS_AT_ONCE):
        cosine = own[start : start + ROWS_AT_ONCE] @ own[start:].T
        rows, columns = np.nonzero(np.triu(cosine >= min_cosine, 1))
        yield Pairs(members[start + rows], members[start + columns], np.minimum(1.0, cosine[rows, columns]))


def equal(names: Sequence[str]) -> Pairs:
    """Pairs of clips with the same name, each clip with the first of its name; an empty name equals none."""
    first_of: dict[str, int] = {}
    pairs = [(first_of.setdefault(name, clip), clip) for clip, name in enumerate(names) if name]
    first, second = np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2).T
    return Pairs(first, second, np.ones(len(first)))


def components(num_clips: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number of the component of each clip, (num_clips,): what pairs connect, over however many, shares one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(num_clips, num_clips))
    return np.asarray(connected_components(links, directed=False)[1])


def groups(num_clips: int, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Components of two clips and more, members ascending."""
    labels = components(num_clips, first, second)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [part for part in parts if len(part) > 1]


def groups_around(pairs: Pairs, order: np.ndarray) -> list[np.ndarray]:
    """Groups of two clips and more in which every clip is near to the first one, which is the one to keep.

    From the best clip to the worst, one that is near to a kept clip joins the most similar of these (of equal ones the
    best), and any other is kept. A chain of small steps thus takes no clip that differs from all that are kept.

    Args:
        pairs: near clips.
        order: place of each clip in the order of keeping, (num_clips,); 0 is best.
    """
    ends = np.concatenate([pairs.first, pairs.second])
    by_clip = np.argsort(ends, kind="stable")
    others = np.concatenate([pairs.second, pairs.first])[by_clip]
    similarity = np.tile(pairs.similarity, 2)[by_clip]
    starts = np.searchsorted(ends[by_clip], np.arange(len(order) + 1)).tolist()
    is_kept = np.zeros(len(order), bool)
    found: dict[int, list[int]] = {}
    for clip in np.argsort(order).tolist():
        near = np.arange(starts[clip], starts[clip + 1])
        near = near[is_kept[others[near]]]
        if len(near):
            keeper = others[near[np.lexsort((order[others[near]], -similarity[near]))[0]]]
            found[int(keeper)].append(clip)
        else:
            is_kept[clip] = True
            found[clip] = [clip]
    return [np.array(group) for group in found.values() if len(group) > 1]
