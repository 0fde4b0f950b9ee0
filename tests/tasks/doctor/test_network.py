"""Ports and servers: what is taken, locked or silent is named, with what to do."""

import http.server
import json
import socket
import threading

import pytest

from tasks.doctor.network import check_mlflow, check_port, check_prefect, check_prefect_leases, check_ray_auth


def test_a_port_that_is_taken_is_reported_with_what_it_is_for():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        check = check_port(port)
    assert check.status == "warn"
    assert "taken" in check.facts
    assert check_port(port).status == "ok"


def test_ray_without_a_token_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert check_ray_auth().status == "warn"
    (tmp_path / "none").write_text("secret")
    assert check_ray_auth().status == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert "no authentication" in check_ray_auth().facts


@pytest.mark.parametrize(
    ("mode", "has_token", "words"),
    [
        ("", True, "RAY_AUTH_MODE is not set; the token in RAY_AUTH_TOKEN_PATH is used"),
        ("disabled", True, "RAY_AUTH_MODE is disabled: a cluster asks for no token"),
        ("", False, "RAY_AUTH_MODE is not set; an embedded Ray makes a token of its own"),
        ("token", True, "RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_a_ray_token_is_said_to_be_used_or_not(monkeypatch, tmp_path, mode, has_token, words):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    if has_token:
        (tmp_path / "token").write_text("secret")
    assert (check_ray_auth().status, check_ray_auth().facts) == ("ok", words)


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
    assert (check_prefect().status, check_prefect().facts) == ("ok", f"{server}/api answers")
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/locked")
    assert check_prefect().status == "warn"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    check = check_mlflow(str(tmp_path))
    assert check.status == "fail"
    assert "secret" not in check.facts
    assert "unset MLFLOW_TRACKING_URI" in check.advice


def test_a_remote_root_needs_an_mlflow_server():
    assert check_mlflow("s3://bucket/root").status == "fail"


class Settings(http.server.BaseHTTPRequestHandler):
    """A Prefect server that shows where it keeps its leases."""

    module = ""

    def do_GET(self):
        body = json.dumps({"server": {"concurrency": {"lease_storage": self.module}}}).encode()
        self.send_response(200 if self.headers["Authorization"] else 401)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("storage", "password", "status", "words"),
    [
        ("filesystem", "user:word", "ok", "runs survive a restart"),
        ("memory", "user:word", "warn", "in memory: a restart of the server ends every run"),
        ("filesystem", "", "warn", "does not show its settings"),
    ],
)
def test_leases_that_a_restart_would_lose_are_reported(monkeypatch, storage, password, status, words):
    Settings.module = f"prefect.server.concurrency.lease_storage.{storage}"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Settings)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", password)
    try:
        check = check_prefect_leases()
    finally:
        server.shutdown()
        server.server_close()
    assert check.status == status
    assert words in check.facts
