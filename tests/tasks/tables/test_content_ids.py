"""Ids are hashes of contents."""

import re

from tasks.tables.content_ids import content_id, crc32


def test_content_id_is_128_bits_of_hex_and_depends_on_every_part():
    assert re.fullmatch(r"[0-9a-f]{32}", content_id("a", 1))
    assert content_id("a", 1) == content_id("a", 1)
    assert len({content_id("a", 1), content_id("a", 2), content_id("a1"), content_id(b"a", 1), content_id(1, "a")}) == 5
    assert content_id({"x": 1, "y": 2}) == content_id({"y": 2, "x": 1})


def test_parts_of_an_id_cannot_run_into_each_other():
    assert content_id("ab", "c") != content_id("a", "bc")


def test_the_checksum_of_parts_is_that_of_the_whole():
    assert crc32(b"12345", b"6789") == crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32
