"""The source.yaml that describes a file, and the error if it cannot be read."""

import os

import pytest

from tasks.sources.folder_cards import FolderCards


def test_the_nearest_card_within_the_source_counts(tmp_path):
    (tmp_path / "source.yaml").write_text("name: above the source\n")
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    cards = FolderCards(str(source))
    assert cards.of(f"{source}/c.mp4") == (str(source), None)
    (source / "a" / "source.yaml").write_text("name: films\n")
    folder, card = cards.of(f"{source}/a/b/c.mp4")
    assert folder == f"{source}/a"
    assert card is not None
    assert card.name == "films"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_card_that_is_no_file_is_refused_in_a_sentence(tmp_path, make):
    make(tmp_path / "source.yaml")
    with pytest.raises(ValueError, match=r"source\.yaml is a folder, pipe or device, where a file is expected"):
        FolderCards(str(tmp_path)).of(f"{tmp_path}/a.mp4")
