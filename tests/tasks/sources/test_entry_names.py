"""What the entries of a list may name."""

import pytest

from tasks.sources.entry_names import foreign, is_of_this_machine, printable


@pytest.mark.parametrize(
    "name", ["a.mp4", "/videos/a.mp4", "https://example.org/a.mp4", "http://[::1]:80/a.mp4", "s3://bucket/a.mp4"]
)
def test_files_of_this_machine_of_the_web_and_of_stores_may_be_named(name):
    assert foreign(name) == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sftp://host/a.mp4", "may not name files of sftp://"),
        ("SFTP://host/a.mp4", "may not name files of sftp://"),
        ("zip://a.mp4::http://example.org/x.zip", "is a chain of file systems"),
        ("https://example.org/a::b.mp4", "is a chain of file systems"),
    ],
)
def test_servers_that_a_name_would_choose_and_chains_are_refused(name, reason):
    assert reason in foreign(name)


def test_the_file_system_of_the_list_itself_may_be_named():
    assert foreign("sftp://host/a.mp4", "sftp://host/videos") == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("/a.mp4", True), ("~/a.mp4", True), ("file:///a.mp4", True), ("a.mp4", False), ("s3://bucket/a.mp4", False)],
)
def test_names_of_files_of_this_machine(name, expected):
    assert is_of_this_machine(name) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Straße.mp4", "Straße.mp4"), ("a\udcff.mp4", "a\\xff.mp4"), ("a\0.mp4", "a\\x00.mp4")],
)
def test_invalid_characters_are_written_as_hex_digits(name, expected):
    assert printable(name) == expected
    assert printable("\ud800") == "\\ud800"
