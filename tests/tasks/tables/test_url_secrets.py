"""Passwords and signatures of URLs are kept nowhere."""

import pytest

from tasks.sources.fetch import FetchConfig
from tasks.sources.ingest import _rows
from tasks.sources.listing import source_files
from tasks.tables.rows import bad_row
from tasks.tables.url_secrets import text_without_secrets, without_secrets

SIGNED = [
    ("http://user:PASS@h.org/a.mp4", "http://h.org/a.mp4"),
    ("http://user:P@SS@h.org:81/a.mp4", "http://h.org:81/a.mp4"),
    ("https://TOKEN@h.org/a.mp4?x=1", "https://h.org/a.mp4?x=1"),
    ("https://h/a?X-Amz-Date=1&X-Amz-Signature=S&X-Amz-Credential=C%2F1&v=2", "https://h/a?v=2"),
    ("https://h/a?x-amz-security-token=S", "https://h/a"),
    ("https://h/a?Expires=1&Signature=S&Key-Pair-Id=K&Policy=P", "https://h/a"),
    ("https://h/a?GoogleAccessId=a&X-Goog-Signature=S", "https://h/a"),
    ("https://b.blob.core.windows.net/c/a.mp4?sv=1&se=2&sr=b&sp=r&sig=S", "https://b.blob.core.windows.net/c/a.mp4"),
    ("https://h/a?sv=1&v=2", "https://h/a?sv=1&v=2"),
    ("https://h/a?access_token=S&api_key=S&apikey=S&key=S&token=S&auth=S&id=7", "https://h/a?id=7"),
    ("https://h/a?id=7#access_token=S", "https://h/a?id=7"),
    ("http://h/list.txt#http://user:PASS@[::1/broken", "http://h/list.txt#http://[::1/broken"),
    ("http://h/list.txt#http://h/a?token=S&v=2", "http://h/list.txt#http://h/a?v=2"),
    ("http://h/get?url=http://user:PASS@inner/a&v=2", "http://h/get?url=http://inner/a&v=2"),
    ("https://h/a#t=10", "https://h/a#t=10"),
    ("s3://KEY:SECRET@bucket/a.mp4", "s3://bucket/a.mp4"),
    ("ftp://h/a?id=1;token=S", "ftp://h/a?id=1"),
    ("/data/a@b?token=1.mp4", "/data/a@b?token=1.mp4"),
    ("https://h/a%20b.mp4?q=%20", "https://h/a%20b.mp4?q=%20"),
]


@pytest.mark.parametrize(("url", "public"), SIGNED)
def test_secrets_are_cut_out_and_the_rest_stays(url, public):
    assert without_secrets(url) == public
    assert without_secrets(public) == public


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'http://u:p@h/a?sig=S' answers 404.", "'http://h/a' answers 404."),
        ("404, message='Not Found', url='https://h/a?token=S&v=2'", "404, message='Not Found', url='https://h/a?v=2'"),
        ("GET /a?X-Amz-Signature=S&v=2 failed", "GET /a?X-Amz-Signature=…&v=2 failed"),
        ("a = b @ c", "a = b @ c"),
    ],
)
def test_messages_hold_no_secrets(text, expected):
    assert text_without_secrets(text) == expected


def test_the_error_of_a_row_holds_no_secret_no_control_character_and_no_novel():
    row = bad_row({}, ("missing", "https://u:PASS@h/a\x1b[2J " + "x" * 10**6))
    assert row["error"].startswith("https://h/a\\x1b[2J x")
    assert len(row["error"]) <= 4000


def rows_of(tmp_path, *urls: str) -> list:
    (tmp_path / "list.txt").write_text("".join(f"{url}\n" for url in urls))
    source = source_files(str(tmp_path / "list.txt"), "/elsewhere", web=FetchConfig())
    return list(_rows(source.folder, source.files, {}))


def test_ids_and_columns_stay_the_same_when_only_the_signature_changes(tmp_path):
    (first,) = rows_of(tmp_path, "https://u:PASS1@h.org/a.mp4?X-Amz-Signature=SIG1&v=2")
    (second,) = rows_of(tmp_path, "https://h.org/a.mp4?v=2&X-Amz-Signature=SIG2")
    assert first["request"] != second["request"]
    assert {**first, "request": ""} == {**second, "request": ""}
    columns = str({**first, "request": ""})
    assert "SIG1" not in columns
    assert "PASS1" not in columns
    assert (first["uri"], first["path"]) == ("https://h.org/a.mp4?v=2", "a.mp4?v=2")


def test_videos_that_differ_in_a_key_only_stay_two_videos(tmp_path):
    rows = rows_of(tmp_path, "https://h.org/get?key=one", "https://h.org/get?key=two", "https://h.org/b.mp4?key=one")
    assert len({row["source_id"] for row in rows}) == 3
    assert rows[2]["uri"] == "https://h.org/b.mp4"


def test_entries_that_cannot_be_used_hold_no_secret_either(tmp_path):
    rows = rows_of(
        tmp_path, "gopher://u:PASS@h/a?token=TOK", "http://u:PASS@[::1/a?sig=TOK", "zip://x::http://u:PASS@h/a"
    )
    assert all(row["error_type"] == "bad_uri" for row in rows)
    assert not any(word in str({**row, "request": ""}) for row in rows for word in ("PASS", "TOK"))
