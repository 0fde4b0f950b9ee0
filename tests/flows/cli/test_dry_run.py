"""`pyramid curate --dry-run`: what a source would give, for people and for scripts."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli.main import app


def curate(*arguments):
    return CliRunner().invoke(app, ["curate", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    (tmp_path / "a.txt").write_text("A dog runs.")
    return tmp_path


def test_it_shows_layout_captions_and_rows_and_writes_nothing(folder, tmp_path):
    done = curate("--source", folder, "--dry-run", "--root", tmp_path / "root")
    assert done.exit_code == 0
    assert done.output.splitlines()[:2] == [
        "a folder, captions in NAME.txt: 1 of 2 videos",
        "2 videos, 1 with a caption",
    ]
    assert "  a.mp4: A dog runs.\n  b.mp4: no caption\n" in done.output
    assert not (tmp_path / "root").exists()


def test_for_scripts_it_is_one_object(folder):
    (folder / "list.csv").write_text("path,caption\na.mp4,A dog.\nb.mp4,one,too many\n")
    done = curate("--source", folder / "list.csv", "--dry-run", "--json")
    seen = json.loads(done.stdout)
    assert (seen["layout"], seen["videos"], seen["captions"]) == ("a list (CSV)", 1, 1)
    assert [problem["where"] for problem in seen["problems"]] == ["line 3"]
    assert "3 cells, expected 2" in seen["problems"][0]["error"]


@pytest.mark.parametrize("content", ["{}", "hello", '{"a": 1}'])
def test_what_cannot_be_read_ends_with_code_2_and_the_reason(folder, content):
    (folder / "list.json").write_text(content)
    done = curate("--source", folder / "list.json", "--dry-run", "--json")
    assert done.exit_code == 2
    assert set(json.loads(done.stdout)) == {"error"}
    assert curate("--source", folder / "list.json", "--dry-run").exit_code == 2
