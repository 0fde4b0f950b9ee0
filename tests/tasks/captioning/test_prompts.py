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


FILES = {
    "p.csv": 'id,prompt\n1,"A dog, it runs."\n2,A cat\n',
    "semicolons.csv": "id;Caption\n1;A dog, it runs.\n2;A cat\n",
    "p.tsv": "prompt\tseed\nA dog, it runs.\t1\nA cat\t2\n",
    "p.json": '["A dog, it runs.", "A cat"]',
    "objects.json": '[{"prompt": "A dog, it runs."}, {"prompt": "A cat"}]',
    "p.jsonl": '{"text": "A dog, it runs."}\n\n{"text": "A cat"}\n',
    "full_info.json": '[{"prompt_en": "A dog, it runs.", "dimension": ["motion"]}, {"prompt_en": "A cat"}]',
    "p.txt": "A dog, it runs.\n# no prompt\nA cat\n",
}


@pytest.mark.parametrize(("name", "content"), FILES.items(), ids=FILES)
def test_a_file_is_read_as_what_it_is(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_prompts([], str(tmp_path / name)) == ["A dog, it runs.", "A cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "id,name\n1,x\n", r"has no column of prompts in its first line 'id,name'; give one of the columns"),
        ("p.json", "[1]", "has an entry without a prompt: 1"),
        ("p.json", '[{"a": "b"}]', r"has an entry without a prompt: \{'a': 'b'\}"),
        ("p.jsonl", "A dog\n", "is not JSON"),
    ],
)
def test_a_file_without_prompts_is_refused_with_what_is_expected(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts([], str(tmp_path / name))
