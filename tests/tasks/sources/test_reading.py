"""A source file is read in place; one that is not there is named."""

import os

import pytest

from pyramid_model.video.video import VideoError
from tasks.sources.reading import reading_source


def test_a_local_file_is_read_in_place(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"video")
    with reading_source(str(file), str(tmp_path)) as path:
        assert path == str(file)


def test_a_remote_file_is_a_copy_in_the_folder_while_it_is_read(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe_file("/reading/a.mp4", b"video")
    with reading_source("memory://reading/a.mp4", str(tmp_path)) as path:
        assert path.startswith(str(tmp_path))
        with open(path, "rb") as copy:
            assert copy.read() == b"video"
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_gone_is_missing(tmp_path):
    with pytest.raises(VideoError) as raised, reading_source("memory://reading/gone.mp4", str(tmp_path)):
        pass
    assert raised.value.kind == "missing"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_that_a_row_names_is_not_waited_for(tmp_path, make):
    make(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="where a file is expected"), reading_source(f"{tmp_path}/a.mp4", "/tmp"):
        pass
