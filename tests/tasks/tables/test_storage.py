"""Files under a root: whole or absent, and never outside it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.tables import storage


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    uri = str(tmp_path / "media" / "clip.mp4")
    with pytest.raises(ZeroDivisionError), storage.writing(uri) as temporary, open(temporary, "wb") as file:
        file.write(b"half" * (1 // 0))
    assert os.listdir(tmp_path / "media") == []
    with storage.writing(uri) as temporary, open(temporary, "wb") as file:
        file.write(b"whole")
    assert os.listdir(tmp_path / "media") == ["clip.mp4"]
    assert storage.read_bytes(uri) == b"whole"


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    with storage.writing(str(tmp_path / "clip.mkv")) as temporary:
        assert temporary.endswith(".mkv")


@pytest.mark.parametrize("part", ["../outside", "/etc/passwd", "a/../../b"])
def test_names_from_manifests_cannot_leave_the_root(part):
    with pytest.raises(ValueError, match="would leave the root"):
        storage.join("/data/root", "media", part)


def test_any_fsspec_uri_works_like_a_folder():
    uri = "memory://bucket/media/clip.bin"
    storage.write_bytes(uri, b"content")
    with storage.reading(uri) as local, open(local, "rb") as file:
        assert file.read() == b"content"
    with storage.writing("memory://bucket/media/other.bin") as temporary, open(temporary, "wb") as file:
        file.write(b"other")
    assert storage.read_bytes("memory://bucket/media/other.bin") == b"other"


@pytest.mark.parametrize("place", ["memory://pieces/file", "{}/file"])
def test_a_file_is_read_piece_by_piece_whole_or_in_part(monkeypatch, tmp_path, place):
    monkeypatch.setattr(storage, "PIECE_BYTES", 4)
    uri = place.format(tmp_path)
    storage.write_bytes(uri, b"0123456789")
    assert list(storage.read_pieces(uri)) == [b"0123", b"4567", b"89"]
    assert list(storage.read_pieces(uri, 2, 5)) == [b"2345", b"6"]
    assert list(storage.read_pieces(uri, 8, 5)) == [b"89"]


def test_a_copy_lies_where_its_owner_wants_it_under_a_name_that_fits(tmp_path):
    uri = f"memory://bucket/clip.bin?{'0' * 300}"
    storage.write_bytes(uri, b"content")
    with storage.reading(uri, str(tmp_path)) as local:
        assert tmp_path in Path(local).parents
        assert Path(local).read_bytes() == b"content"
    assert os.listdir(tmp_path) == []


def test_an_unwritable_root_is_named_with_the_option_to_change(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(PermissionError, match=r"cannot write under root .*--root"):
        storage.check_writable(str(blocker / "root"))


def test_many_may_ask_at_once_whether_a_root_can_be_written(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(storage.check_writable, [str(tmp_path / "root")] * 200):
            pass
    assert os.listdir(tmp_path / "root") == []


def test_a_root_of_a_kind_that_nothing_here_can_reach_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"root 'foo://x' cannot be reached: .*uv run --with"):
        storage.check_writable("foo://x")


def test_a_new_root_is_private_and_an_existing_one_keeps_its_mode(tmp_path):
    storage.check_writable(str(tmp_path / "new" / "root"))
    assert (tmp_path / "new" / "root").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    storage.check_writable(str(tmp_path / "shared"))
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755
