"""Ray jobs against an HTTP server that answers like a Ray head, at worst moments too. Runs in about 10 s.

`tests/flows/test_jobs.py` has a real head; this one can fall silent or be late at will.
"""

import _thread
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.__main__ import LineFormatter, main
from tasks.cutting import clips
from tasks.cutting.clips import ClipsConfig
from tasks.running import jobs
from tasks.running.errors import StepError
from tasks.running.run import RayConfig, Run, StepResult, report_progress
from tasks.selecting.select_config import Bounds, SelectConfig, SelectResult


def printed(token: str, num_ok: int = 3) -> str:
    """What an attempt prints that succeeds."""
    result = StepResult(step="clips", num_in=3, num_ok=num_ok)
    return f"BEGIN {token}\nINFO at work\nRESULT {token} {result.model_dump_json()}\n"


class Head(ThreadingHTTPServer):
    """What of Ray's Jobs API our client uses, about one job."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.status, self.log, self.exit_code, self.metadata = "", None, None, {}
        self.statuses = ["RUNNING", "SUCCEEDED"]  # told one by one to whoever asks about the job
        self.submitted, self.asked = "", []
        self.earlier: list[dict] = []  # ended jobs
        self.before: dict[str, list] = {}  # "GET /api/…" -> what to do before each answer, in order

    @property
    def address(self) -> str:
        return f"jobs:http://127.0.0.1:{self.server_port}"

    def reply(self, method: str, path: str, body: dict) -> tuple[int, object]:
        """Code and JSON of one request."""
        if path == "/api/version":
            return 200, {"ray_version": "2.60.0", "version": "4", "ray_commit": "", "session_name": ""}
        if (method, path) == ("GET", "/api/jobs/"):
            return 200, self.earlier + ([self.details(self.status)] if self.submitted else [])
        if (method, path) == ("POST", "/api/jobs/"):
            if self.submitted:
                return 500, f"Job with submission_id {self.submitted} already exists."
            self.submitted, self.status, self.metadata = body["submission_id"], "PENDING", body["metadata"]
            return 200, {"submission_id": self.submitted, "job_id": self.submitted}
        if method == "DELETE":
            return 200, {"deleted": True}
        if path.endswith("/stop"):
            return 200, {"stopped": True}
        if path.endswith("/logs"):
            return 200, {"logs": printed(self.token) if self.log is None else self.log.replace("TOKEN", self.token)}
        self.status = self.statuses.pop(0) if self.statuses else self.status
        return 200, self.details(self.status)

    @property
    def token(self) -> str:
        return self.metadata.get(jobs.TOKEN, "")

    def details(self, status: str) -> dict:
        job = {"type": "SUBMISSION", "submission_id": self.submitted, "status": status, "entrypoint": "python"}
        return job | {"driver_exit_code": self.exit_code, "metadata": self.metadata}


class Answer(BaseHTTPRequestHandler):
    """One request to a Head."""

    def do_GET(self) -> None:
        head: Head = self.server
        asked = f"{self.command} {self.path}"
        head.asked.append(asked)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if head.before.get(asked):
            head.before[asked].pop(0)(self)
        code, content = head.reply(self.command, self.path, json.loads(body or b"{}"))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    do_POST = do_DELETE = do_GET

    def log_message(self, *_args) -> None:
        """Say nothing."""


def hang_up(answer: Answer) -> None:
    """Close the connection without a word."""
    answer.connection.close()
    raise ConnectionAbortedError


def silence(_answer: Answer) -> None:
    """Let the client wait for longer than it does."""
    time.sleep(2.5)


@pytest.fixture
def head(monkeypatch) -> Iterator[Head]:
    monkeypatch.setattr(jobs, "REQUEST_S", 1.0)
    monkeypatch.setattr(jobs, "POLL_MOST_S", 0.2)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    server = Head()
    server.handle_error = lambda *_args: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def submit(head: Head) -> StepResult:
    run = Run(root="/data/none", ray=RayConfig(address=head.address))
    return jobs.submit_step("clips", run, ClipsConfig(), StepResult)


def test_the_result_of_a_job_is_of_the_class_of_its_step(head):
    given = SelectResult(step="select", selection="s", thresholds={"motion": Bounds(min=1.5)})
    head.log = f"BEGIN TOKEN\nRESULT TOKEN {given.model_dump_json()}\n"
    run = Run(root="/data/none", ray=RayConfig(address=head.address))
    assert jobs.submit_step("select", run, SelectConfig(), SelectResult) == given


def job_path(number: int = 1) -> str:
    return f"/api/jobs/{jobs.job_prefix('clips', Run(root='/data/none'), ClipsConfig())}{number}"


def stops(head: Head) -> list[str]:
    return [asked for asked in head.asked if asked.endswith("/stop")]


@pytest.mark.parametrize("trouble", [hang_up, silence])
def test_a_head_that_is_silent_for_a_moment_is_followed_to_the_end(head, trouble):
    head.before = {f"GET {job_path()}": [trouble], f"GET {job_path()}/logs": [trouble]}
    head.statuses = ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert submit(head).num_ok == 3
    assert not stops(head)


def test_a_head_that_stays_silent_is_given_up_and_its_job_left_running(head, monkeypatch):
    monkeypatch.setattr(jobs, "UNREACHABLE_S", 0.5)
    head.before = {f"GET {job_path()}": [hang_up] * 50}
    with pytest.raises(StepError, match="lost the Ray cluster while following job pyramid-clips-"):
        submit(head)
    assert not stops(head)


def test_cancelling_stops_the_job(head):
    head.before = {f"GET {job_path()}/logs": [lambda _answer: _thread.interrupt_main()]}
    head.statuses = ["RUNNING"] * 50
    with pytest.raises(KeyboardInterrupt):
        submit(head)
    assert stops(head) == [f"POST {job_path()}/stop"]


def test_a_driver_that_comes_second_by_a_moment_joins_the_job_of_the_first(head, caplog):
    def other_driver(_answer: Answer) -> None:
        head.submitted, head.status = job_path().rpartition("/")[2], "RUNNING"
        head.metadata = {jobs.TOKEN: "of-the-other-driver"}

    head.before = {"POST /api/jobs/": [other_driver]}
    caplog.set_level("INFO", "pyramid.jobs")
    assert submit(head).num_ok == 3
    assert "joined Ray job pyramid-clips-" in caplog.text
    assert not stops(head)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError("by peer"), True),
        (StepError("a node died", transient=True), True),
        (StepError("no space left"), False),
        (ValueError("crf"), False),
    ],
)
def test_a_failed_job_says_what_and_whether_to_try_again(head, capsys, monkeypatch, error, transient):
    def step(run: Run, config: ClipsConfig) -> StepResult:
        raise error

    monkeypatch.setattr(clips, "clips", step)
    arguments = {"run": {"root": "/data/none"}, "config": {}, "attempt": "TOKEN"}
    assert main(["clips", json.dumps(arguments)]) == 3
    head.statuses, head.log, head.exit_code = ["FAILED"], capsys.readouterr().out, 3
    with pytest.raises(StepError, match=f"ended as FAILED: {type(error).__name__}: {error}") as raised:
        submit(head)
    assert raised.value.transient is transient


@pytest.mark.parametrize(("exit_code", "transient"), [(None, True), (-9, True), (137, True), (1, False)])
def test_a_job_without_last_words_is_tried_again_when_it_was_killed(head, exit_code, transient):
    head.statuses, head.log, head.exit_code = ["FAILED"], "BEGIN TOKEN\nERROR of a library\n", exit_code
    with pytest.raises(StepError, match="its last lines:\nERROR of a library") as raised:
        submit(head)
    assert raised.value.transient is transient


def test_the_status_of_a_job_decides_and_not_the_result_that_it_printed(head):
    head.statuses, head.exit_code = ["FAILED"], 1
    with pytest.raises(StepError, match="ended as FAILED"):
        submit(head)


def test_lines_of_an_earlier_attempt_are_neither_taken_for_ours_nor_shown_again(head, caplog):
    head.log = (
        printed("of-yesterday", num_ok=77) + 'BEGIN TOKEN\nWARNING \x1b[31mno source\x1b[0m\nRESULT other {"a": 1}\n'
    )
    head.statuses, head.exit_code = ["RUNNING", "FAILED"], 3
    caplog.set_level("INFO", "pyramid.jobs")
    with pytest.raises(StepError, match="its last lines:\nWARNING") as raised:
        submit(head)
    assert "at work" not in caplog.text + str(raised.value)
    assert ("pyramid.jobs", 30, "no source") in caplog.record_tuples  # with its level, without its colour


def test_progress_that_a_step_prints_is_progress_for_the_driver_again(head, caplog):
    caplog.set_level("INFO", "pyramid.progress")
    report_progress("train_dit", 3, 9, "steps", "loss 0.5", "http://mlflow/#/runs/1")
    [record] = caplog.records
    line = LineFormatter("%(levelname)s %(message)s").format(record)
    caplog.clear()
    head.log = f"BEGIN TOKEN\n{line}\n" + printed("TOKEN").partition("\n")[2]
    submit(head)
    [again] = [record for record in caplog.records if record.name == "pyramid.progress"]
    assert (again.step, again.done, again.total, again.detail) == ("train_dit", 3, 9, "loss 0.5")
    assert again.link == "http://mlflow/#/runs/1"


def test_lines_that_look_like_ours_and_line_separators_in_a_result_end_no_driver(head, caplog):
    result = StepResult(step="clips", num_ok=3, note="a\u2028b\x85c")
    head.log = (
        f"BEGIN TOKEN\nPROGRESS of the film\nPROGRESS [1]\nPROGRESS {{}}\nRESULT TOKEN {result.model_dump_json()}\n"
    )
    caplog.set_level("INFO", "pyramid.jobs")
    assert submit(head) == result
    assert "PROGRESS of the film" in caplog.text


def test_a_job_that_succeeded_without_our_result_is_an_error(head):
    head.log = printed("of-yesterday")
    with pytest.raises(StepError, match=r"ended as SUCCEEDED .*\n\(it printed none\)"):
        submit(head)


def test_every_attempt_is_a_job_of_its_own_and_only_the_last_ended_one_stays(head):
    ended = {"type": "SUBMISSION", "status": "SUCCEEDED", "entrypoint": "python", "metadata": {jobs.TOKEN: "t"}}
    head.earlier = [ended | {"submission_id": job_path(number).rpartition("/")[2]} for number in (1, 2, 9, 10)]
    assert submit(head).num_ok == 3
    assert head.submitted == job_path(11).rpartition("/")[2]
    deleted = [asked for asked in head.asked if asked.startswith("DELETE")]
    assert deleted == [f"DELETE {job_path(number)}" for number in (1, 2, 9)]


def test_a_cancelled_flow_stops_the_running_attempt_and_no_ended_one(head):
    run = Run(root="/data/none", ray=RayConfig(address=head.address))
    jobs.stop_step("clips", run, ClipsConfig())
    assert not stops(head)
    head.submitted, head.status, head.metadata = job_path(4).rpartition("/")[2], "RUNNING", {jobs.TOKEN: "t"}
    jobs.stop_step("clips", run, ClipsConfig())
    assert stops(head) == [f"POST {job_path(4)}/stop"]


def test_a_driver_that_loses_its_console_leaves_the_job_running(head):
    """Rich ends a process whose output pipe breaks by SystemExit, as after a SIGKILL of the worker that reads it."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "at work" in record.getMessage():
                raise SystemExit(1)

    log, handler = logging.getLogger("pyramid.jobs"), Broken()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        head.statuses = ["RUNNING"] * 50
        with pytest.raises(SystemExit):
            submit(head)
    finally:
        log.removeHandler(handler)
    assert not stops(head)
