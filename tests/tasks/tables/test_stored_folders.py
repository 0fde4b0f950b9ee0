"""Folders are written as a whole."""

import pytest

from tasks.tables.stored_folders import local_folder, writing_folder


def test_a_model_folder_appears_whole_or_not_at_all(tmp_path):
    uri = str(tmp_path / "models" / "m")
    with pytest.raises(RuntimeError), writing_folder(uri) as folder:  # noqa: PT012
        (tmp_path / "models").joinpath(folder, "half").write_text("x")
        raise RuntimeError
    assert not list((tmp_path / "models").iterdir())
    for content in ("first", "second"):
        with writing_folder(uri) as folder:
            (tmp_path / folder / "file").write_text(content)
    assert (tmp_path / "models" / "m" / "file").read_text() == "first"


def test_a_remote_folder_is_a_copy_while_it_is_read():
    import fsspec

    fsspec.filesystem("memory").pipe_file("/folders/m/config.json", b"{}")
    with local_folder("memory://folders/m") as folder, open(f"{folder}/config.json") as file:
        assert file.read() == "{}"
