"""Steps as Ray jobs on a real Ray head with token authentication. Runs in 90 s on two cores."""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]
NUM_VIDEOS = 150  # so that the job outlasts the start of a second driver

SUBMIT = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from tasks.cutting.clips import ClipsConfig, ClipsResult
from tasks.running.jobs import submit_step
from tasks.running.run import RayConfig, Run
run = Run(root={root!r}, ray=RayConfig(address={address!r}))
result = submit_step("clips", run, ClipsConfig(min_frames=9, crf={crf}), ClipsResult)
print("FINISHED", result.model_dump_json())
"""
FLOW = """
from flows.cli.launch import use_prefect
use_prefect({root!r})
from flows.curate import curate
curate({root!r}, "smoke", settings={{"ray.address": {address!r}, "ingest.source": {source!r}, "clips.crf": 33}})
"""
JOBS = """
import json
from ray.job_submission import JobSubmissionClient
jobs = JobSubmissionClient({address!r}).list_jobs()
print("JOBS", json.dumps({{job.submission_id: job.status.value for job in jobs if job.submission_id}}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_videos) -> Path:
    """Enough videos that a job can be caught at work."""
    folder = tmp_path_factory.mktemp("many")
    write_videos(folder, 1)
    video = (folder / "video0.mp4").read_bytes()
    for i in range(1, NUM_VIDEOS):  # bytes after the last box are no part of the film, but make another file
        (folder / f"copy{i:02}.mp4").write_bytes(video + i.to_bytes(2, "big"))
    return folder


@pytest.fixture(scope="module")
def root(source, tmp_path_factory) -> Path:
    from tasks.running.run import Run
    from tasks.sources.ingest import IngestConfig, ingest

    folder = tmp_path_factory.mktemp("root")
    assert ingest(Run(root=str(folder)), IngestConfig(source=str(source))).num_ok == NUM_VIDEOS
    return folder


def jobs(head, log: Path) -> dict[str, str]:
    """Status by submission id."""
    address = head.address.removeprefix("jobs:")
    assert head.start_python(JOBS.format(address=address), log).wait(60) == 0, log.read_text()
    return json.loads(log.read_text().split("JOBS ")[1])


def servers_of(root: Path) -> list[int]:
    """Processes of Prefect's temporary server that keeps its database under this root."""
    home = str(root / "prefect")
    pids = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "uvicorn" in process.cmdline() and process.environ().get("PREFECT_HOME") == home:
                pids.append(process.pid)
    return pids


def finished(process: subprocess.Popen, log: Path) -> dict:
    assert process.wait(240) == 0, log.read_text()
    return json.loads(log.read_text().split("FINISHED ")[1])


def test_a_job_outlives_its_driver_and_the_next_driver_joins_it(ray_head, root, until, tmp_path):
    code = SUBMIT.format(root=str(root), address=ray_head.address, crf=30)
    first = ray_head.start_python(code, tmp_path / "first.log")
    until(lambda: f"clips 0/{NUM_VIDEOS}" in (tmp_path / "first.log").read_text(), 120, "progress of the job")
    first.kill()
    first.wait(20)

    second = ray_head.start_python(code, tmp_path / "second.log")
    result = finished(second, tmp_path / "second.log")
    said = (tmp_path / "second.log").read_text()
    assert re.search(r"joined Ray job pyramid-clips-\w+-1, which is running", said)
    assert f"clips {NUM_VIDEOS}/{NUM_VIDEOS}" in said
    assert (result["num_in"], result["num_done"], result["num_ok"]) == (NUM_VIDEOS, 0, NUM_VIDEOS)

    # The next attempt is a job of its own: the step looks again, and finds nothing to do.
    third = ray_head.start_python(code, tmp_path / "third.log")
    result = finished(third, tmp_path / "third.log")
    assert (result["num_in"], result["num_done"], result["num_ok"]) == (NUM_VIDEOS, NUM_VIDEOS, 0)


def test_log_of_a_job_is_in_prefect_and_ctrl_c_stops_it(ray_head, root, source, until, tmp_path):
    code = FLOW.format(root=str(root), address=ray_head.address, source=str(source))
    flow = ray_head.start_python(code, tmp_path / "flow.log")
    database = root / "prefect" / "prefect.db"

    def lines() -> str:
        if not database.exists():
            return ""
        with (
            contextlib.suppress(sqlite3.OperationalError),  # no such table yet, or being written
            contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection,
        ):
            return "\n".join(row[0] for row in connection.execute("select message from log"))
        return ""

    until(lambda: f"clips 0/{NUM_VIDEOS}" in lines(), 180, "the job's log in Prefect")
    assert "submitted Ray job pyramid-clips-" in lines()
    assert servers_of(root)
    flow.send_signal(signal.SIGINT)  # Ctrl-C; `prefect flow-run cancel` is in test_operations.py
    assert flow.wait(60) != 0
    until(lambda: "RUNNING" not in jobs(ray_head, tmp_path / "jobs.log").values(), 60, "the end of the job")
    assert list(jobs(ray_head, tmp_path / "jobs.log").values()).count("STOPPED") == 1
    until(lambda: not servers_of(root), 20, "the end of Prefect's temporary server")


def test_failed_job_says_why(ray_head, tmp_path):
    code = SUBMIT.format(root="/proc/nowhere", address=ray_head.address, crf=30)
    driver = ray_head.start_python(code, tmp_path / "failed.log")
    assert driver.wait(120) != 0
    assert (
        "ended as FAILED: PermissionError: cannot write under root '/proc/nowhere'"
        in (tmp_path / "failed.log").read_text()
    )


def test_unreachable_head_is_told_with_its_address(tmp_path):
    from tasks.cutting.clips import ClipsConfig, ClipsResult
    from tasks.running.errors import StepError
    from tasks.running.jobs import submit_step
    from tasks.running.run import RayConfig, Run

    run = Run(root=str(tmp_path), ray=RayConfig(address="jobs:http://127.0.0.1:9"))
    with pytest.raises(StepError, match=r"http://127.0.0.1:9 \(ray.address\)"):
        submit_step("clips", run, ClipsConfig(), ClipsResult)
