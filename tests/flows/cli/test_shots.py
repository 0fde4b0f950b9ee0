"""`pyramid shots` on real files: what it prints, and how it ends. About 5 s."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import time

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
    # In a process of its own: what a library printed behind Python's back would spoil the JSON.
    command = [sys.executable, "-c", "from flows.cli.main import app; app()", "shots", "--json", *map(str, names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shots_by_file = json.loads(done.stdout)
    assert list(shots_by_file) == [str(name) for name in names]
    good, torn, text, missing, directory, *unreachable = shots_by_file.values()
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


def test_names_are_paths_whatever_they_look_like_and_a_pipe_is_not_waited_for(folder, tmp_path, monkeypatch):
    names = ["file:part 1.mp4", "a::b.mp4", "100%d.mp4"]
    for name in names:
        (tmp_path / name).symlink_to(folder / "a good one.mp4")
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)
    lists = json.loads(shots("--json", *names, "pipe.jpg", "--timeout", 60).stdout)
    assert [lists[name].get("cuts") for name in names] == [[20]] * 3
    assert lists["pipe.jpg"] == {"error": "unreadable: pipe.jpg is a folder, pipe or device, where a file is expected"}


class Host(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; of what is called "stuck" only the beginning."""

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(5000))
        outputfile.flush()
        if "stuck" in self.path:
            time.sleep(8)
        outputfile.write(source.read())


@pytest.mark.parametrize(
    ("name", "options", "shot_list"),
    [
        (f"good.mp4?signature={'0' * 300}", (), {"cuts": [20], "gradual": [], "fps": 25.0, "frames": 35}),
        ("stuck.mp4", ("--timeout", 4), {"error": "timeout: not done after 4 s (--timeout)"}),
    ],
)
def test_of_what_is_fetched_nothing_stays_even_when_it_is_given_up(
    folder, tmp_path, monkeypatch, name, options, shot_list
):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "stuck.mp4").write_bytes(bytes(2**20))
    (tmp_path / "good.mp4").symlink_to(folder / "a good one.mp4")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Host, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        assert json.loads(shots("--json", url, *options).stdout) == {url: shot_list}
        server.shutdown()
    assert list((tmp_path / "tmp").iterdir()) == []


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
