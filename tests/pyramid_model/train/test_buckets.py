"""Buckets of training clips."""

import pytest

from pyramid_model.train.buckets import FAMILIES, Bucket, expand_buckets, fitting_bucket, num_frames_at, parse_bucket


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


def test_families_of_buckets_have_one_area_in_several_aspects():
    for name, sizes in FAMILIES.items():
        areas = [height * width for height, width in sizes]
        assert max(areas) < 1.1 * min(areas)
        assert all(side % 64 == 0 for size in sizes for side in size)
        assert len(expand_buckets([f"{name}x121@24", f"{name}x57@24"])) == 2 * len(sizes)
    assert expand_buckets(["384px121@24"])[:2] == ("384x640x121@24", "640x384x121@24")
    with pytest.raises(ValueError, match=r"'384px120@24' has 120 frames: latents need 1 \+ 8k, e\.g\. 121"):
        expand_buckets(["384px120@24"])
    with pytest.raises(ValueError, match="no family of buckets is called '100p'"):
        expand_buckets(["100px9@24"])


BUCKETS = [Bucket(48, 80, 9, 24), Bucket(96, 160, 9, 24), Bucket(96, 160, 17, 24), Bucket(160, 96, 9, 24)]


@pytest.mark.parametrize(
    ("size", "frames", "fps", "expected"),
    [
        ((480, 854), 24, 24, "96x160x17@24"),  # the nearest aspect, then the largest, then the longest
        ((480, 854), 16, 24, "96x160x9@24"),
        ((854, 480), 24, 24, "160x96x9@24"),
        ((60, 100), 24, 24, "48x80x9@24"),
        ((480, 854), 8, 24, "too_short"),
        ((40, 64), 24, 24, "too_small"),
        ((480, 854), 24, 60, "96x160x9@24"),  # 24 frames at 60 a second give 10 at 24
        ((480, 854), 18, 60, "too_short"),
    ],
)
def test_a_clip_goes_into_the_best_bucket_that_it_fills(size, frames, fps, expected):
    bucket, why = fitting_bucket(*size, frames, fps, BUCKETS, max_upscale=1.0)
    assert (str(bucket) if bucket else why) == expected


@pytest.mark.parametrize(("frames", "clip_fps", "fps", "expected"), [(30, 30, 15, 15), (30, 30, 30, 30), (1, 24, 9, 1)])
def test_resampling_counts_as_reading_does(frames, clip_fps, fps, expected):
    assert num_frames_at(frames, clip_fps, fps) == expected


@pytest.mark.parametrize("text", ["48x80x9", "48x80@24", "axbxc@d", "0x80x9@24", "48x80x9@"])
def test_what_is_no_bucket_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match=r"is not a bucket: write <height>x<width>x<frames>@<fps>"):
        parse_bucket(text)
