"""Facts about the files that a generator writes."""

import pytest

from tasks.generating.clip_generator import file_name


@pytest.mark.parametrize(
    ("prompt", "expected"), [("A cat, running!", "a-cat-running-7-01234567.mp4"), ("猫が走る", "clip-7-01234567.mp4")]
)
def test_generated_files_are_named_after_their_prompt(prompt, expected):
    assert file_name(prompt, 7, "0123456789abcdef") == expected
