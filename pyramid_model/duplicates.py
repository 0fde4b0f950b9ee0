"""Detection of duplicate clips: similar pairs by perceptual hash or embedding, and groups of such pairs.

Clips are numbers from 0 to num_clips - 1. Not all pairs are compared: hashes are compared if some of their lowest
frequencies agree, embeddings within a cluster.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 64  # number of following entries in the sorted order of a band with which an entry is compared
PAIRS_AT_ONCE = 512
ROWS_AT_ONCE = 1024
CLIPS_PER_CLUSTER = 2000


class Pairs(NamedTuple):
    """Pairs of similar clips, each pair once."""

    first: np.ndarray  # (p,) int64, less than `second`
    second: np.ndarray  # (p,) int64
    similarity: np.ndarray  # (p,) float64, 0..1


def near_by_hash(hashes: Sequence[np.ndarray], max_distance: int, min_share: float) -> Pairs:
    """Pairs of clips in which most hashes of the clip with fewer hashes are near to a hash of the other clip.

    Two clips are candidates only if a hash of one and a hash of the other agree in three of the eight lowest rows of
    frequencies. Two hashes that differ in at most five bits of these rows are always compared. Of those that differ in
    eight bits, about half are compared, which is sufficient because clips have many hashes. The order of the hashes has
    no effect.

    Args:
        hashes: one array per clip, (n, 32) uint8: bytes of n hashes of 16x16 frequencies. A clip with n = 0 is in no
            pair.
        max_distance: number of bits of 256 by which near hashes may differ.
        min_share: share of the hashes that must be near, 0..1.

    Returns:
        Pairs; similarity: share of equal bits, mean over the hashes of the clip with fewer.
    """
    first, second = _candidates(hashes, max_distance // 4 + 4)
    counts = np.array([len(clip_hashes) for clip_hashes in hashes], np.int64)
    swap = counts[first] > counts[second]
    fewer, more = np.where(swap, second, first), np.where(swap, first, second)
    padded = _padded(hashes, int(counts.max(initial=0)))
    near, distance = np.zeros(len(fewer)), np.zeros(len(fewer))
    for start in range(0, len(fewer), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        few, many = fewer[part], more[part]
        width, depth = int(counts[few].max()), int(counts[many].max())
        distances = _distances(padded[few, :width], padded[many, :depth])
        nearest = np.where(np.arange(depth) < counts[many][:, None, None], distances, 256).min(axis=2)
        is_real = np.arange(width) < counts[few][:, None]  # not padding
        near[part] = ((nearest <= max_distance) & is_real).sum(axis=1) / counts[few]
        distance[part] = (nearest * is_real).sum(axis=1) / counts[few]
    is_similar = near >= min_share
    return Pairs(first[is_similar], second[is_similar], 1 - distance[is_similar] / 256)


def _distances(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Number of different bits between hashes of paired clips: (p, n, 4), (p, m, 4) uint64 -> (p, n, m) uint16."""
    words = [np.bitwise_count(few[:, :, None, word] ^ many[:, None, :, word]) for word in range(4)]
    return np.stack(words).sum(axis=0, dtype=np.uint16)


def _padded(hashes: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Hashes of all clips as one array (num_clips, width, 4) uint64, padded with 0."""
    padded = np.zeros((len(hashes), width, 32), np.uint8)
    for row, clip_hashes in zip(padded, hashes, strict=True):
        row[: len(clip_hashes)] = clip_hashes
    return padded.view(np.uint64)


def _candidates(hashes: Sequence[np.ndarray], max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of clips (first, second), first < second, with hashes that are near in the lowest 8x8 frequencies."""
    clip = np.repeat(np.arange(len(hashes)), [len(clip_hashes) for clip_hashes in hashes])
    # A row has 16 bits, so every other byte contains its lower half.
    lowest = np.concatenate([np.empty((0, 32), np.uint8), *hashes])[:, 0:16:2]
    values = np.ascontiguousarray(lowest).view(np.uint64).reshape(-1)
    # Equal hashes of a clip become one entry; otherwise a still clip would fill a band on its own.
    values, clip = np.unique(np.stack([values, clip.astype(np.uint64)]), axis=1)
    rows = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
    codes = np.empty(0, np.int64)
    for band in itertools.combinations(range(8), 3):
        rest = [row for row in range(8) if row not in band]
        # Little-endian: the last three bytes are the most significant, so sorting makes equal bands adjacent.
        reordered = np.ascontiguousarray(rows[:, [*rest, *band]]).view(np.uint64).reshape(-1)
        order = np.argsort(reordered, kind="stable")
        new_codes = list(_neighbours(reordered[order], clip[order].astype(np.int64), max_distance, len(hashes)))
        codes = np.unique(np.concatenate([codes, *new_codes]))
    return codes // max(1, len(hashes)), codes % max(1, len(hashes))


def _neighbours(values: np.ndarray, clip: np.ndarray, max_distance: int, num_clips: int) -> Iterator[np.ndarray]:
    """Yield codes (first * num_clips + second) of pairs of clips with near hashes in one band.

    values: (n,) uint64, sorted; the band is in the three most significant bytes. clip: of each value, (n,).
    """
    bands = values >> np.uint64(40)
    indices = np.arange(len(values))
    for step in range(1, WINDOW + 1):
        indices = indices[indices + step < len(values)]
        indices = indices[bands[indices] == bands[indices + step]]
        if not len(indices):
            return
        near = indices[np.bitwise_count(values[indices] ^ values[indices + step]) <= max_distance]
        clip_a, clip_b = clip[near], clip[near + step]
        low, high = np.minimum(clip_a, clip_b), np.maximum(clip_a, clip_b)
        yield np.unique(low[low < high] * num_clips + high[low < high])


def across_videos(pairs: Pairs, video: np.ndarray) -> Pairs:
    """Pairs of clips from different videos in which one clip is the best match, within its video, of the other clip.

    All clips of a static camera look alike. Those of one video are not copies of each other, and each has one best
    match in a copy of the video. Of equally good matches, all are returned.

    Args:
        pairs: similar clips.
        video: number of the video of each clip, (num_clips,).
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
    """Pairs of clips in one k-means cluster with a cosine of at least 1 - max_distance.

    Args:
        vectors: (num_clips, d), not zero, of any norm; the clusters depend on their order.
        max_distance: the epsilon of SemDeDup.
        num_clusters: None: one for every 2,000 clips; up to 2,000 clips, all pairs are compared.

    Source: SemDeDup, arXiv:2303.09540, section 3.
    """
    unit = vectors.astype(np.float32) / np.linalg.norm(vectors, axis=1, keepdims=True)
    parts = [
        pairs
        for members in _clusters(unit, num_clusters or -(-len(unit) // CLIPS_PER_CLUSTER))
        for pairs in _near_in(unit, members, 1 - max_distance)
    ]
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _clusters(unit: np.ndarray, num_clusters: int) -> Iterator[np.ndarray]:
    """Yield the members of each cluster, ascending. unit: vectors of length 1, (num_clips, d)."""
    if num_clusters < 2 or len(unit) <= num_clusters:
        yield np.arange(len(unit))
        return
    from sklearn.cluster import KMeans

    # One initialisation with k-means++; with a fixed seed, equal vectors give equal clusters.
    labels = KMeans(num_clusters, max_iter=50, random_state=0).fit_predict(unit)
    order = np.argsort(labels, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _near_in(unit: np.ndarray, members: np.ndarray, min_cosine: float) -> Iterator[Pairs]:
    """Yield the similar pairs of one cluster by blocks of rows, since the whole matrix may not fit into memory."""
    vectors = unit[members]
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        cosine = vectors[start : start + ROWS_AT_ONCE] @ vectors[start:].T
        rows, columns = np.nonzero(np.triu(cosine >= min_cosine, 1))
        yield Pairs(members[start + rows], members[start + columns], np.minimum(1.0, cosine[rows, columns]))


def equal(names: Sequence[str]) -> Pairs:
    """Pairs of clips with equal names: each clip with the first of that name. Empty names are in no pair."""
    first_of: dict[str, int] = {}
    pairs = [(first_of.setdefault(name, clip), clip) for clip, name in enumerate(names) if name]
    first, second = np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2).T
    return Pairs(first, second, np.ones(len(first)))


def components(num_clips: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Connected component of each clip in the graph of the pairs, (num_clips,) numbers."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(num_clips, num_clips))
    return np.asarray(connected_components(links, directed=False)[1])


def groups(num_clips: int, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Connected components of at least two clips, members ascending."""
    labels = components(num_clips, first, second)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [part for part in parts if len(part) > 1]


def groups_around(pairs: Pairs, order: np.ndarray) -> list[np.ndarray]:
    """Groups of at least two clips in which every clip is similar to the first one, the keeper.

    Clips are processed from best to worst. A clip that is similar to a keeper joins the group of the most similar one
    (of equally similar ones, the best); any other clip becomes a keeper. So no clip is in the group of a keeper from
    which it differs, even if a chain of similar pairs connects the two.

    Args:
        pairs: similar clips.
        order: rank of each clip, (num_clips,); 0 is best.
    """
    ends = np.concatenate([pairs.first, pairs.second])
    by_clip = np.argsort(ends, kind="stable")
    others = np.concatenate([pairs.second, pairs.first])[by_clip]
    similarity = np.tile(pairs.similarity, 2)[by_clip]
    starts = np.searchsorted(ends[by_clip], np.arange(len(order) + 1)).tolist()
    is_keeper = np.zeros(len(order), bool)
    members: dict[int, list[int]] = {}  # by keeper
    for clip in np.argsort(order).tolist():
        near = np.arange(starts[clip], starts[clip + 1])
        near = near[is_keeper[others[near]]]
        if len(near):
            keeper = others[near[np.lexsort((order[others[near]], -similarity[near]))[0]]]
            members[int(keeper)].append(clip)
        else:
            is_keeper[clip] = True
            members[clip] = [clip]
    return [np.array(group) for group in members.values() if len(group) > 1]
