"""Buckets of training clips."""

import pytest

from pyramid_model.train.buckets import Bucket, expand_buckets, fitting_bucket, num_frames_at, parse_bucket


def test_a_bucket_is_written_as_it_is_read():
    assert str(parse_bucket("384x640x121@23.976")) == "384x640x121@23.976"
    with pytest.raises(ValueError, match=r"'384x640@24' is not a bucket"):
        parse_bucket("384x640@24")


def test_sides_of_a_family_are_multiples_of_64_px_and_areas_differ_little():
    buckets = [parse_bucket(text) for text in expand_buckets(["384px121@24"])]
    assert all(bucket.height % 64 == bucket.width % 64 == 0 for bucket in buckets)
    areas = [bucket.height * bucket.width for bucket in buckets]
    assert max(areas) < 1.1 * min(areas)


def test_half_the_rate_gives_half_the_frames():
    assert num_frames_at(49, 24.0, 24.0) == 49
    assert num_frames_at(49, 24.0, 12.0) == 25


def test_the_nearest_aspect_comes_before_the_larger_area():
    wide, square = Bucket(64, 128, 9, 24.0), Bucket(128, 128, 9, 24.0)
    assert fitting_bucket(100, 200, 20, 24.0, [square, wide], max_upscale=2.0) == (wide, "")
    assert fitting_bucket(100, 200, 8, 24.0, [square, wide], max_upscale=2.0) == (None, "too_short")
    assert fitting_bucket(20, 40, 20, 24.0, [square, wide], max_upscale=2.0) == (None, "too_small")
