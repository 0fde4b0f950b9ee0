"""`pyramid shots` on real files: what it prints, and how it ends. About 5 s."""

import json

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli.main import app


def shots(*arguments) -> Result:
    return CliRunner().invoke(app, ["shots", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shoot):
    """Good and bad files."""
    folder = tmp_path_factory.mktemp("shots")
    shoot(folder / "a good one.mp4", [20, 15], fps=25)
    data = (folder / "a good one.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(data[: len(data) * 8 // 10])
    (folder / "text.mp4").write_text("not a video")
    return folder


def test_json_says_of_every_file_where_its_shots_begin_or_why_nothing_can_be_said(folder):
    before = sorted(folder.iterdir())
    names = [folder / "a good one.mp4", folder / "torn.mp4", folder / "text.mp4", folder / "nowhere.mp4", folder]
    names += ["gopher://host/film.mp4", "http://127.0.0.1:9/film.mp4"]
    done = shots("--json", *names)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == [str(name) for name in names]
    good, torn, text, missing, directory, *unreachable = found.values()
    assert good == {"cuts": [20], "gradual": [], "fps": 25.0, "frames": 35}
    assert torn["problem"].startswith("truncated: ")
    assert 0 < torn["frames"] < 35
    assert {text["error"][:10], missing["error"][:8], directory["error"][:10]} == {
        "not_media:",
        "missing:",
        "unreadable",
    }
    assert [facts["error"].split(" cannot be fetched")[0] for facts in unreachable] == [
        f"unreadable: {name}" for name in names[-2:]
    ]
    assert sorted(folder.iterdir()) == before


def test_without_json_there_is_a_table_and_a_line_for_each_problem(folder):
    done = shots(folder / "torn.mp4", folder / "text.mp4", "--method", "stride", "--stride", 7)
    assert done.exit_code == 0, done.stderr
    assert "7 14" in " ".join(done.stdout.split())
    assert f"damaged {folder / 'torn.mp4'}: truncated" in done.stdout
    assert f"error {folder / 'text.mp4'}: not_media" in done.stdout


def test_it_ends_with_1_when_no_file_can_be_read_and_with_2_when_a_setting_is_wrong(folder):
    assert shots("--json", folder / "text.mp4").exit_code == 1
    late = shots("--json", folder / "a good one.mp4", "--timeout", 0.1)
    assert late.exit_code == 1
    assert json.loads(late.stdout)[str(folder / "a good one.mp4")]["error"].startswith("timeout: not done after 0.1 s")
    wrong = shots(folder / "text.mp4", "--method", "guess")
    assert wrong.exit_code == 2
    assert "method 'guess': Input should be 'adaptive'" in wrong.stderr
