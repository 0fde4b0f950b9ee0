"""The hash of several files."""

from pyramid_model.weights.files_hash import files_hash


def test_the_hash_depends_on_names_and_bytes_and_not_on_the_folder(tmp_path):
    def hash_of(folder, **contents):
        (tmp_path / folder).mkdir()
        for name, content in contents.items():
            (tmp_path / folder / name).write_bytes(content)
        return files_hash(tmp_path / folder, sorted((tmp_path / folder).iterdir()))

    first = hash_of("a", x=b"12", y=b"3")
    assert hash_of("b", x=b"12", y=b"3") == first
    assert hash_of("c", x=b"1", y=b"23") != first
    assert hash_of("d", x=b"12", z=b"3") != first
