"""Counts of kept clips by split, bucket and nested set agree with the tables."""

from dataclasses import replace

import pyarrow as pa
import pytest

from tasks.report.curation import aspect_name, bucket_lines, set_lines, split_lines


def test_splits_and_buckets_count_what_is_kept(curation):
    assert [(line.split, line.num_videos, line.num_clips, line.seconds) for line in split_lines(curation)] == [
        ("train", 2, 2, 2.0),
        ("val", 1, 1, 1.0),
    ]
    [bucket] = bucket_lines(curation)
    assert (bucket.aspect, bucket.splits, bucket.num_clips) == ("16:9", {"train": 2, "val": 1, "test": 0}, 3)


def test_that_a_wider_set_dropped_a_clip_is_said_only_where_nothing_else_is(curation):
    lists = [["not_in_wide", "motion_low"], ["not_in_wide"], [], *[[]] * 5]
    column = curation.clips.column_names.index("drop_reasons")
    clips = curation.clips.set_column(column, "drop_reasons", pa.array(lists, pa.list_(pa.string())))
    rules = replace(curation, clips=clips).rules
    assert [(rule.reason, rule.alone, rule.only) for rule in rules] == [("not_in_wide", 1, 1), ("motion_low", 1, 1)]


def test_each_nested_set_is_counted_for_itself(curated_root, curation):
    wide, strict = set_lines(curated_root, curation, {"wide": "wide", "strict": "strict"})
    assert (wide.num_clips, wide.seconds, wide.is_on_page) == (8, 8.0, False)
    assert (strict.num_clips, strict.splits["val"], strict.is_on_page) == (3, 1, True)


@pytest.mark.parametrize(
    ("size", "name"), [((1280, 720), "16:9"), ((720, 1280), "9:16"), ((640, 384), "5:3"), ((1000, 400), "2.5:1")]
)
def test_aspects_have_their_common_names(size, name):
    assert aspect_name(*size) == name
