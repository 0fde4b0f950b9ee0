"""What the report says of trained models and their verdicts."""

import pytest

from tasks.models.gate import Check
from tasks.report.models import bucket_shape, flat_figures, sign


def test_nested_settings_become_lines_and_only_long_lists_are_left_out():
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": list(range(99)), "e": [{"f": 1}], "g": []}
    assert flat_figures(nested) == [("a.b", 1), ("a.c", "1, 2"), ("g", "none")]


def test_a_training_clip_is_shown_in_the_shape_of_its_bucket():
    assert (bucket_shape("384x640x121@24"), bucket_shape("")) == ("640/384", "")


@pytest.mark.parametrize(
    ("value", "limit", "passed", "expected"), [(0.5, 0.9, True, "≤"), (2, 1, True, "≥"), (1.0, 0.9, False, "≤")]
)
def test_the_side_of_a_limit_is_told_from_the_verdict(value, limit, passed, expected):
    assert sign(Check(name="loss", value=value, limit=limit, passed=passed, rule="")) == expected
