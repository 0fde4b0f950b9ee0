"""Facts about lists of prompts."""

import pytest

from tasks.captioning.prompts import read_prompts


def test_prompts_come_from_the_list_and_the_file_each_once(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# comment\n a  cat \n\nA dog\na cat\n")
    assert read_prompts(["A dog", "bird"], str(file)) == ["A dog", "bird", "a cat"]
    assert read_prompts(["#1 fan", " "], str(file)) == ["#1 fan", "a cat", "A dog"]  # comments are of files
    with pytest.raises(ValueError, match="cannot read prompts_file"):
        read_prompts([], str(tmp_path / "missing.txt"))
