"""Views of a clip: parts of its time and picture."""

import numpy as np
import pytest

from pyramid_model.train.buckets import parse_bucket
from pyramid_model.train.views import View, ViewsConfig
from pyramid_model.video.video import read_clip, write_video

CONFIG = ViewsConfig(count=8, max_zoom=1.5)
BUCKET = parse_bucket("32x64x9@12")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """40 frames at 12 fps: red grows to the right, green downwards, blue with time."""
    t, y, x = np.meshgrid(np.arange(40) * 6, np.arange(64) * 3, np.arange(128) * 1.5, indexing="ij")
    uri = str(tmp_path_factory.mktemp("views") / "clip.mp4")
    write_video(uri, np.stack([x, y, t], axis=-1).astype(np.uint8), fps=12)
    return uri


def test_view_0_is_the_clip_as_a_training_reads_it(clip):
    expected = read_clip(clip, height=32, width=64, fps=12, num_frames=9)
    np.testing.assert_array_equal(View.draw("clip", 0, CONFIG).read(clip, BUCKET, 40 / 12), expected)


def test_a_view_shows_the_part_that_its_numbers_say(clip):
    frames = View(zoom=2, top=1, left=0, start=1).read(clip, BUCKET, 40 / 12).astype(float)
    red, green, blue = frames.mean(axis=(0, 1, 2))
    assert frames.shape == (9, 32, 64, 3)
    assert red == pytest.approx(48, abs=6)  # left half of 0 … 192
    assert green == pytest.approx(144, abs=6)  # lower half of 0 … 192
    assert blue == pytest.approx(35 * 6, abs=8)  # the last 9 of 40 frames
    mirrored = View(zoom=2, top=1, left=0, start=1, flipped=True).read(clip, BUCKET, 40 / 12)
    np.testing.assert_array_equal(mirrored, frames[:, :, ::-1])


def test_views_are_the_same_in_every_run_and_differ_from_each_other_and_from_those_of_other_clips(clip):
    views = [View.draw("clip", number, CONFIG) for number in range(1, 9)]
    assert views == [View.draw("clip", number, CONFIG) for number in range(1, 9)]
    assert len({*views, View.draw("another", 1, CONFIG)}) == 9
    assert sum(view.flipped for view in views) == 4
    assert all(1 <= view.zoom <= 1.5 for view in views)
    assert not any(View.draw("clip", n, ViewsConfig(flip=False)).flipped for n in range(9))


def test_a_clip_that_is_just_long_enough_has_views_too(clip):
    bucket = parse_bucket("32x64x40@12")
    assert len(View(start=1).read(clip, bucket, 40 / 12)) == 40
