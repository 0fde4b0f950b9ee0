"""Cards of sources: what a wrong one says, and which file an entry is about."""

import pytest

from tasks.sources.card import SourceCard, read_card


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "source.yaml is not YAML"),
        ("- a\n- b", "must be a mapping with the keys name, license"),
        ("name: x\nlicence: MIT", "no key 'licence'. Did you mean 'license'\\? Keys of source.yaml: name, license, "),
        ("files: [{path: a.mp4, sha: ab}]", "no key 'files.0.sha'.*Keys of files: path, sha256, license"),
        ("splits: [{file: a.mp4, split: val, start: 2}]", "'splits.0.start'. Did you mean 'start_s'\\?"),
        ("files: [{title: A}]", "wrong: files.0.path is missing"),
        ("splits: [{file: a.mp4, split: valid}]", "splits.0.split = 'valid'.*'train', 'val' or 'test'"),
        ("splits: [{file: a.mp4, split: val, start_s: 5, end_s: 2}]", "start_s 5 is not before end_s 2"),
    ],
)
def test_a_wrong_card_is_explained(tmp_path, text, message):
    (tmp_path / "source.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_card(str(tmp_path / "source.yaml"))


def test_an_entry_of_a_file_replaces_the_licence_of_the_source_and_pins_only_that_file():
    entries = {"files": [{"path": "b.mp4", "license": "CC0-1.0"}], "splits": [{"file": "b.mp4", "split": "val"}]}
    card = SourceCard.model_validate({"name": "films", "license": "CC-BY-4.0"} | entries)
    assert (card.license_of("a.mp4"), card.license_of("b.mp4")) == ("CC-BY-4.0", "CC0-1.0")
    assert (len(card.pins_of("a.mp4")), [pin.split for pin in card.pins_of("b.mp4")]) == (0, ["val"])
