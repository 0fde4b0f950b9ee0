"""YAML from elsewhere takes no more time and memory than its size."""

import time

import pytest

from tasks.tables.yaml_text import MAX_NODES, parse_yaml

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
)
MERGES = "m0: &m0 {k: 1, l: 2}\n" + "".join(
    f"m{i + 1}: &m{i + 1} {{<<: [{','.join([f'*m{i}'] * 10)}]}}\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "values, with those that its aliases repeat"),
        (MERGES, "values, with those that its aliases repeat"),
        ("name: " + "[" * 5000 + "]" * 5000, "levels deep"),
        ("name: " + "{a: " * 5000, "levels deep"),
        ("- " * 5000, "levels deep"),
        ("name: 2026-13-45", "month must be in 1..12"),
        ("a: &a [*a]", "no value before it"),
        ("a: *b", "no value before it"),
        ("name: " + "9" * 5000, "a number or date of 5000 characters"),
        ("name: " + "1:" * 5000 + "1", "a number or date"),
        ("[a, b", "is not YAML"),
        ("name: x\nfiles: []\nname: y", "the key 'name' stands there twice"),
        ("a: {<<: {b: 1}, c: 1, c: 2}", "the key 'c' stands there twice"),
        ("? [a]\n: b", "is not YAML"),
        ("name: \x07", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("[" + "1," * MAX_NODES + "1]", "values"),
    ],
)
def test_what_no_file_of_ours_is_is_refused_in_a_sentence_with_the_name(text, reason):
    started = time.monotonic()
    with pytest.raises(ValueError, match=reason) as refused:
        parse_yaml(text, "films/source.yaml")
    assert str(refused.value).startswith("films/source.yaml ")
    assert len(str(refused.value)) < 1000
    assert time.monotonic() - started < 60


def test_aliases_of_ordinary_size_stay():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "x")["b"] == {"x": 1, "y": 2}
    assert parse_yaml(b"n: 1.5\nd: 2026-01-02\ni: -3\ns: 'a'", "x")["i"] == -3


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="x is not YAML"):
        parse_yaml(bytes(range(256)), "x")
