"""Hashes of clips."""

import numpy as np

from pyramid_model.metrics.perceptual_hash import MAX_HASHES, clip_hashes, frames_hash, hashed_frames


def test_hashed_frames_are_the_middles_of_equal_parts_and_at_most_64():
    assert hashed_frames(24, 24.0) == [3, 9, 15, 21]
    assert hashed_frames(1, 24.0) == [0]
    assert len(hashed_frames(24 * 600, 24.0)) <= MAX_HASHES


def test_scaling_and_noise_change_few_bits_and_another_picture_many(picture, view):
    frame = view(picture)
    noisy = np.clip(frame + np.random.default_rng(0).normal(0, 3, frame.shape), 0, 255).astype(np.uint8)
    hashes = [int(clip_hashes(image[None], 24.0)[0], 16) for image in (frame, noisy[::2, ::2], view(picture, right=60))]
    assert (hashes[0] ^ hashes[1]).bit_count() < 40
    assert (hashes[0] ^ hashes[2]).bit_count() > 60


def test_flat_frames_have_no_hash():
    assert clip_hashes(np.full((12, 32, 32), 200, np.uint8), 24.0) == []


def test_the_hash_of_pixels_depends_on_every_pixel_and_on_the_shape():
    frames = np.zeros((2, 4, 6), np.uint8)
    changed = frames.copy()
    changed[1, 3, 5] = 1
    assert len({frames_hash(frames), frames_hash(changed), frames_hash(frames.reshape(2, 6, 4))}) == 3
