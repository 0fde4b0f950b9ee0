"""Near clips are found without comparing all pairs, and different ones are not joined. About 3 s."""

import numpy as np
import pytest

from pyramid_model.duplicates import (
    Pairs,
    across_videos,
    equal,
    groups,
    groups_around,
    near_by_embedding,
    near_by_hash,
)
from pyramid_model.metrics.perceptual_hash import MAX_HASHES, clip_hashes, frames_hash, hashed_frames

RNG = np.random.default_rng(0)


def random_hashes(num_clips: int, count: int) -> list[np.ndarray]:
    return list(RNG.integers(0, 256, (num_clips, count, 32), np.uint8))


def flipped(hashes: np.ndarray, num_bits: int) -> np.ndarray:
    """The hashes with so many bits changed in each."""
    masks = np.zeros((len(hashes), 256), np.uint8)
    for mask in masks:
        mask[RNG.choice(256, num_bits, replace=False)] = 1
    return hashes ^ np.packbits(masks, axis=1)


def found(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_copies_are_found_among_many_clips_and_nothing_else():
    clips = random_hashes(3000, 8)
    copies = [flipped(clips[number], 24) for number in range(200)]
    pairs = near_by_hash([*clips, *copies], max_distance=32, min_share=0.6)
    assert found(pairs) == {(number, 3000 + number) for number in range(200)}
    np.testing.assert_allclose(pairs.similarity, 1 - 24 / 256)


def test_the_order_of_the_clips_changes_nothing():
    clips = [*random_hashes(50, 6), *random_hashes(50, 3)]
    clips += [flipped(clips[number], 16) for number in range(0, 100, 10)]
    order = RNG.permutation(len(clips))
    straight = found(near_by_hash(clips, 32, 0.6))
    shuffled = near_by_hash([clips[place] for place in order], 32, 0.6)
    back = {tuple(sorted((int(order[a]), int(order[b])))) for a, b in found(shuffled)}
    assert back == straight
    assert len(straight) == 10


@pytest.mark.parametrize(("shared", "expected"), [(4, True), (3, True), (2, False)])
def test_most_frames_of_the_clip_with_fewer_must_be_there(shared, expected):
    long, short = random_hashes(1, 12)[0], random_hashes(1, 5)[0]
    short[:shared] = long[4 : 4 + shared]
    assert bool(found(near_by_hash([long, short], 32, 0.6))) is expected


def test_many_copies_of_one_clip_are_one_group():
    clip = random_hashes(1, 10)[0]
    copies = [flipped(clip, 12) for _ in range(300)]
    pairs = near_by_hash([*copies, np.empty((0, 32), np.uint8), *random_hashes(20, 10)], 32, 0.6)
    assert [len(group) for group in groups(321, pairs.first, pairs.second)] == [300]


def test_a_still_camera_joins_a_clip_with_its_copy_only():
    """Clips 0..2 of one video all look alike, and so do their copies 3..5 in another one."""
    first, second = np.triu_indices(6, 1)
    aligned = second == first + 3
    pairs = across_videos(Pairs(first, second, np.where(aligned, 0.99, 0.95)), np.array([0, 0, 0, 1, 1, 1]))
    assert found(pairs) == {(0, 3), (1, 4), (2, 5)}


def test_a_longer_clip_is_joined_with_each_of_its_parts():
    pairs = Pairs(np.array([0, 0]), np.array([1, 2]), np.array([0.99, 0.9]))
    assert found(across_videos(pairs, np.array([0, 1, 1]))) == {(0, 1), (0, 2)}


def test_alike_vectors_are_found_within_clusters_and_the_rest_is_left_alone():
    vectors = RNG.normal(size=(400, 32))
    vectors[300:350] = 3 * (vectors[:50] + RNG.normal(size=(50, 32)) * 0.05)
    expected = {(number, 300 + number) for number in range(50)}
    for num_clusters in (None, 4):
        assert found(near_by_embedding(vectors, 0.05, num_clusters)) == expected


def test_equal_names_and_what_they_connect_are_groups():
    pairs = equal(["a", "b", "", "a", "", "a"])
    assert found(pairs) == {(0, 3), (0, 5)}
    joined = groups(6, np.append(pairs.first, 1), np.append(pairs.second, 5))
    assert [group.tolist() for group in joined] == [[0, 1, 3, 5]]
    assert groups(3, *(np.empty(0, np.int64),) * 2) == []


def test_a_chain_of_small_steps_takes_no_clip_that_differs_from_the_kept_ones():
    """Clips 0..4 on an arc, each near to its neighbours only."""
    angles = np.arange(5) * 0.25
    chain = near_by_embedding(np.stack([np.cos(angles), np.sin(angles)], 1), 0.05)
    assert found(chain) == {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert len(groups(5, chain.first, chain.second)) == 1
    for order, expected in (([0, 1, 2, 3, 4], [[0, 1], [2, 3]]), ([1, 0, 2, 4, 3], [[1, 0, 2], [4, 3]])):
        place = np.empty(5, np.int64)
        place[order] = np.arange(5)
        assert [group.tolist() for group in groups_around(chain, place)] == expected


def test_a_clip_near_to_two_kept_ones_joins_the_one_that_is_more_like_it():
    pairs = Pairs(np.array([0, 1]), np.array([2, 2]), np.array([0.96, 0.97]))
    assert [group.tolist() for group in groups_around(pairs, np.arange(3))] == [[1, 2]]
    assert groups_around(Pairs(*(np.empty(0, np.int64),) * 2, np.empty(0)), np.arange(3)) == []


@pytest.mark.parametrize("clips", [[], [np.empty((0, 32), np.uint8)] * 3])
def test_nothing_to_compare_gives_no_pairs(clips):
    pairs = across_videos(near_by_hash(clips, 32, 0.6), np.arange(len(clips)))
    assert groups(len(clips), pairs.first, pairs.second) == []


def test_flat_frames_have_no_hash():
    texture = RNG.integers(0, 255, (1, 36, 64), np.uint8)
    dark = np.full((24, 36, 64), 3, np.uint8) + RNG.integers(0, 4, (24, 36, 64), np.uint8)
    assert clip_hashes(dark, 24) == []
    assert len(clip_hashes(np.concatenate([dark, np.repeat(texture, 24, axis=0)]), 24)) == 4


@pytest.mark.parametrize(("num_frames", "fps", "count"), [(1, 24, 1), (24, 24, 4), (48, 48, 4), (2400, 24, 50)])
def test_frames_are_hashed_at_one_rate_whatever_that_of_the_clip(num_frames, fps, count):
    chosen = hashed_frames(num_frames, fps)
    assert len(chosen) == count <= MAX_HASHES
    assert chosen == sorted(set(chosen))
    assert chosen[-1] < num_frames


def test_pixels_and_their_shape_make_the_hash_of_frames():
    frames = RNG.integers(0, 255, (3, 4, 6), np.uint8)
    assert frames_hash(frames) == frames_hash(frames.copy(order="F"))
    assert len({frames_hash(video) for video in (frames, frames.reshape(3, 6, 4), frames[:2], 255 - frames)}) == 4
