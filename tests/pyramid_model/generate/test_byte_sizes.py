"""Amounts of memory as people write them."""

import pytest

from pyramid_model.generate.byte_sizes import format_bytes, parse_bytes

GIB = 2**30


@pytest.mark.parametrize(("text", "expected"), [("8GiB", 8 * GIB), ("8 gb", 8 * GIB), ("900M", 900 * 2**20), ("5", 5)])
def test_amounts_of_memory_are_read_as_people_write_them(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [(8 * GIB, "8.00 GiB"), (8 * GIB + 1, "8.01 GiB"), (5 << 20, "5.0 MiB"), (5, "0.1 MiB")]
)
def test_amounts_are_written_as_they_are_read_and_never_as_less(size, expected):
    assert format_bytes(size) == expected
    assert parse_bytes(format_bytes(size)) >= size


@pytest.mark.parametrize("text", ["", "much", "8 apples", "0", "1.2.3G"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(ValueError, match="write it like 8GiB"):
        parse_bytes(text)
