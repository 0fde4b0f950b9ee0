"""What a checkpoint says about its training, and files that say something else."""

import json

import pytest

from tasks.running.errors import StepError
from tasks.training.marks import newest_mark, read_mark

CONTENT = {
    "about": {"kind": "vae", "model_id": "m", "settings": {}, "trained_on": {}},
    "facts": {"step": 3, "curve": []},
    "files": {},
}


def test_the_newest_checkpoint_is_the_one_of_the_last_step(tmp_path):
    assert newest_mark(str(tmp_path)) is None
    for step, name in ((3, "step-00000003"), (12, "step-00000012"), (99, "other"), (70, ".partial-step-00000070")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whole.json").write_text(json.dumps(CONTENT | {"facts": {"step": step}}))
    mark = newest_mark(str(tmp_path))
    assert mark is not None
    assert (mark.facts.step, mark.about.model_id, mark.about.kind) == (12, "m", "vae")


@pytest.mark.parametrize(
    "content",
    [b"{", b"null", b"[]", b"{}", b"\xff", json.dumps(CONTENT | {"about": {"kind": "film"}}).encode()],
    ids=["cut off", "null", "list", "empty", "binary", "another kind"],
)
def test_a_file_that_is_not_of_a_checkpoint_is_told_in_a_sentence(tmp_path, content):
    (tmp_path / "whole.json").write_bytes(content)
    with pytest.raises(StepError, match=r"whole\.json says nothing about a checkpoint that can be used .*remove its"):
        read_mark(str(tmp_path / "whole.json"))
