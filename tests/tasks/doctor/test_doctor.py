"""Doctor: each thing that can be missing is found and named, with what to do. About 5 s."""

import http.server
import socket
import sys
import threading

import pytest
import typer
from typer.testing import CliRunner

from flows.cli.doctor import doctor
from tasks.doctor.doctor import all_checks
from tasks.doctor.machine import (
    check_bytecode,
    check_disk,
    check_hf_datasets,
    check_packages,
    check_python,
    check_root,
    check_shm,
    check_uv,
)
from tasks.doctor.media import CODECS, check_codec
from tasks.doctor.network import check_mlflow, check_port, check_prefect, check_ray_auth

SERVER_VARIABLES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in (*SERVER_VARIABLES, "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "fail"), ((3, 12, 1), "ok"), ((3, 13, 0), "fail")])
def test_python_must_be_one_that_the_lock_knows(version, status):
    assert check_python(version).status == status


def test_packages_are_compared_with_what_is_asked_for():
    [line] = check_packages()
    assert line.status == "ok"
    [bad, rest] = check_packages(["numpy>=1", "fastapi<0.1", "torch; python_version < '3'"])
    assert (bad.name, bad.status) == ("fastapi", "fail")
    assert "needs fastapi<0.1" in bad.advice
    assert rest.found == "1 of 2 as required"
    [missing, _] = check_packages(["no-such-package-anywhere>=2"])
    assert (missing.found, missing.advice) == ("not installed", "uv sync (needs no-such-package-anywhere>=2)")


def test_hugging_face_datasets_wins_the_import():
    assert check_hf_datasets().status == "ok"


def test_missing_bytecode_is_reported_where_nothing_will_write_it(monkeypatch, tmp_path):
    (tmp_path / "bare_module.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert check_bytecode("bare_module").status == "warn"
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert check_bytecode("bare_module").status == "ok"


def test_a_port_that_is_taken_is_reported_with_what_it_is_for():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        check = check_port(port)
    assert check.status == "warn"
    assert "taken" in check.found
    assert check_port(port).status == "ok"


def test_a_root_that_cannot_be_written_is_reported(tmp_path):
    assert check_root(str(tmp_path / "not" / "yet")).status == "ok"
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    check = check_root(str(tmp_path / "file" / "root"))
    assert check.status == "fail"
    assert "--root" in check.advice
    assert check_root("/proc/pyramid").status == "fail"
    assert check_root("nosuchprotocol://bucket/root").status == "fail"


def test_a_full_disk_is_told_apart_from_a_roomy_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.doctor.machine.MIN_DISK_GB", 0)
    assert check_disk(str(tmp_path)).status == "ok"
    monkeypatch.setattr("tasks.doctor.machine.MIN_DISK_GB", 1e9)
    check = check_disk(str(tmp_path))
    assert (check.status, "are recommended" in check.found) == ("warn", True)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec[0])
def test_every_codec_of_the_list_decodes_here(codec):
    check = check_codec(*codec)
    assert (check.status, check.found.split(";")[0].split(" (")[0]) in {
        ("ok", "decodes"),
        ("ok", f"decoder {codec[2]} is there"),
    }


def test_missing_codecs_are_named():
    assert "no decoder nonsense" in check_codec("av1", "libsvtav1", "nonsense", False).found
    assert check_codec("av1", "libsvtav1", "nonsense", False).status == "warn"
    assert check_codec("h264", "nonsense", "h264", True).status == "fail"
    assert check_codec("hevc", "nonsense", "hevc", False).status == "ok"


def test_shared_memory_may_be_absent(tmp_path):
    assert check_shm(str(tmp_path / "none")).status == "ok"


def test_ray_without_a_token_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert check_ray_auth().status == "warn"
    (tmp_path / "none").write_text("secret")
    assert check_ray_auth().status == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert "no authentication" in check_ray_auth().found


@pytest.mark.parametrize(
    ("mode", "has_token", "words"),
    [
        ("", True, "a token is in RAY_AUTH_TOKEN_PATH, but RAY_AUTH_MODE is not set, so it is not used"),
        ("disabled", True, "a token is in RAY_AUTH_TOKEN_PATH, but RAY_AUTH_MODE is disabled, so it is not used"),
        ("", False, "RAY_AUTH_MODE is not set, and there is no token: Ray asks for none"),
        ("token", True, "RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_a_ray_token_is_said_to_be_used_or_not(monkeypatch, tmp_path, mode, has_token, words):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    if has_token:
        (tmp_path / "token").write_text("secret")
    assert (check_ray_auth().status, check_ray_auth().found) == ("ok", words)


def test_the_uv_hook_of_ray_is_reported(monkeypatch):
    assert check_uv().status == "ok"
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1")
    assert check_uv().status == "warn"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if "locked" in self.path else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_servers_are_asked_whether_they_answer(server, monkeypatch, tmp_path):
    assert check_prefect().status == "ok"
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    assert (check_prefect().status, check_prefect().found) == ("ok", f"{server}/api answers")
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/locked")
    assert check_prefect().status == "warn"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    check = check_mlflow(str(tmp_path))
    assert check.status == "fail"
    assert "secret" not in check.found
    assert "unset MLFLOW_TRACKING_URI" in check.advice


def test_a_remote_root_needs_an_mlflow_server():
    assert check_mlflow("s3://bucket/root").status == "fail"


def test_every_check_runs_here(tmp_path):
    found = list(all_checks(str(tmp_path)))
    assert not [check for check in found if check.name == "a check broke"]
    assert all(check.advice for check in found if check.status != "ok")


@pytest.mark.parametrize(
    ("root", "code", "words"), [("root", 0, "can run the demo"), ("file/root", 1, "not ready: root")]
)
def test_the_command_prints_a_table_and_exits_1_when_something_is_missing(tmp_path, root, code, words):
    (tmp_path / "file").write_text("")
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, ["--root", str(tmp_path / root)])
    assert result.exit_code == code
    assert words in " ".join(result.output.split())
