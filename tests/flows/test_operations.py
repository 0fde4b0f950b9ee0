"""A night of operation with a real Prefect server, worker and Ray head: what is told is what happened. About 6 min."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1500)]
NUM_VIDEOS = 60  # so that the clips step is at work while things break


@pytest.fixture(scope="module")
def many(tmp_path_factory, write_videos) -> Path:
    """Enough videos that a job can be caught at work."""
    folder = tmp_path_factory.mktemp("many")
    write_videos(folder, 1)
    video = (folder / "video0.mp4").read_bytes()
    for i in range(1, NUM_VIDEOS):  # bytes after the last box are no part of the film, but make another file
        (folder / f"copy{i:03}.mp4").write_bytes(video + i.to_bytes(2, "big"))
    return folder


def test_a_run_that_succeeded_and_then_fails_is_told_as_failed(night, tiny_source, tmp_path, until):
    source = tmp_path / "videos"
    shutil.copytree(tiny_source, source)
    first = night.run(source)
    assert night.ended(first)["type"] == "COMPLETED", night.log(first)

    source.rename(tmp_path / "gone")
    second = night.run(source)
    state = night.ended(second)
    (tmp_path / "gone").rename(source)  # later runs on this root read its card
    assert state["type"] == "FAILED"
    assert str(source) in state["message"]
    until(lambda: "ingest finished" not in night.log(second) and "ingest started" in night.log(second), 60, "the log")
    assert any(str(source) in text and "is Failed" in text for text in until(night.told, 60, "the web hook"))


def test_a_cancelled_run_stops_its_job(night, many, until):
    run = night.run(many, **{"clips.crf": 31})
    night.clips_at_work(run)
    night.cli("prefect", "flow-run", "cancel", run)
    assert night.ended(run)["type"] == "CANCELLED"
    until(lambda: "RUNNING" not in night.jobs().values(), 60, "the end of the job")
    assert "STOPPED" in night.jobs().values()


def test_a_restart_of_the_server_ends_no_run_and_keeps_its_slot(night, many):
    run = night.run(many, **{"clips.crf": 32})
    night.clips_at_work(run)
    lease = night.state(run)["state_details"]["deployment_concurrency_lease_id"]
    night.restart_server()
    # As the run does every 225 s: a server that has forgotten the lease refuses, and the run would end itself.
    night.api.call("POST", f"/v2/concurrency_limits/leases/{lease}/renew", {"lease_duration": 300})
    assert night.ended(run)["type"] == "COMPLETED", night.log(run)


@contextlib.contextmanager
def paused_job() -> Iterator[None]:
    """The driver of the running clips job stands still, so that the job cannot end before we look."""
    drivers = [
        process
        for process in psutil.process_iter()
        if process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[1:4] == ["-m", "tasks", "clips"]
    ]
    assert drivers
    for driver in drivers:
        driver.suspend()
    try:
        yield
    finally:
        for driver in drivers:
            driver.resume()


def test_after_a_sigkill_of_the_worker_its_job_goes_on_and_the_next_run_joins_it(night, many, until):
    first = night.run(many, **{"clips.crf": 33})
    night.clips_at_work(first)
    with paused_job():
        before = night.jobs()
        for process in [*psutil.Process(night.worker.pid).children(recursive=True), night.worker]:
            os.kill(process.pid, signal.SIGKILL)
        night.worker.wait(20)
        night.worker = night.start_worker()
        state = night.ended(first, timeout_s=360)  # nothing tells that it has ended but its silence
        assert (state["type"], state["message"].partition(":")[0]) == ("CRASHED", "no heartbeat for 120 s")
        assert night.jobs() == before

        second = night.run(many, **{"clips.crf": 33})
        until(lambda: "joined Ray job pyramid-clips-" in night.log(second), 300, "the second run at the job")
    assert night.ended(second)["type"] == "COMPLETED", night.log(second)
    assert night.jobs().keys() == before.keys()
    assert any("is Crashed" in text for text in until(night.told, 60, "the web hook"))
