"""Clips are decoded on request, and only some of them stay in memory."""

import numpy as np
import pytest

from tasks.tables.current import selected_clips
from tasks.training.clip_reader import ClipReader

CLIP_BYTES = 9 * 32 * 32 * 3


@pytest.fixture
def clips(squares):
    return selected_clips(squares.root, "", "train", ("clip_id", "uri")).to_pylist()


def test_clips_that_were_used_last_stay_decoded(clips):
    reader = ClipReader(clips, cache_bytes=2 * CLIP_BYTES)
    first = reader.read(0)
    assert first is not None
    assert (first.shape, first.dtype) == ((9, 32, 32, 3), np.uint8)
    assert reader.read(0) is first
    reader.read(1)
    reader.read(0)
    reader.read(2)  # in place of 1, which was used before 0
    assert reader.read(0) is first
    assert sorted(reader._decoded) == [0, 2]
    assert reader._num_bytes == 2 * CLIP_BYTES
    assert reader.shapes == [(3, 1, 32, 32)] * 4


def test_without_a_cache_nothing_stays(clips):
    reader = ClipReader(clips, cache_bytes=0)
    assert np.array_equal(reader.read(3), reader.read(3))
    assert not reader._decoded


def test_a_clip_that_cannot_be_read_is_listed_once(clips):
    reader = ClipReader([clips[0] | {"uri": "/nowhere.mp4"}, clips[1]], cache_bytes=0)
    assert reader.read(0) is None
    assert reader.read(0) is None
    assert reader.read(1) is not None
    assert len(reader.bad) == 1
    assert reader.bad[0].startswith(f"{clips[0]['clip_id']}: ")
