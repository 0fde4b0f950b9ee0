"""Slots of a real Prefect server: one run at a time for each step and root."""

import subprocess
import sys

import pytest

from flows.limits import limit_name

pytestmark = [pytest.mark.server, pytest.mark.slow]

HOLDER = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logging.getLogger("httpx").setLevel(logging.WARNING)
from flows.limits import one_at_a_time
with one_at_a_time(sys.argv[1], sys.argv[2]):
    print("working", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start(prefect_server):
    """`start(step, root)`: a process that holds the slot of a step until it reads a line."""
    processes: list[subprocess.Popen] = []

    def hold(step: str, root: str) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", HOLDER, step, root], env=prefect_server.environment, **pipes
        )
        processes.append(process)
        return process

    yield hold
    for process in processes:
        process.kill()
        process.wait(20)


def end(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(60) == 0


def test_two_runs_of_a_step_take_turns_on_a_root_and_not_on_two(prefect_server, start):
    first = start("clips", "/data/a")
    assert first.stdout.readline() == "working\n"
    second, elsewhere, other_step = start("clips", "/data/a"), start("clips", "/data/b"), start("scores", "/data/a")
    assert second.stdout.readline() == "clips waits: another run works on it in /data/a\n"
    assert elsewhere.stdout.readline() == other_step.stdout.readline() == "working\n"
    name = limit_name("clips", "/data/a")
    assert prefect_server.call("GET", f"/v2/concurrency_limits/{name}")["active_slots"] == 1
    end(first)
    assert second.stdout.readline() == "working\n"
    for process in (second, elsewhere, other_step):
        end(process)
    assert prefect_server.call("GET", f"/v2/concurrency_limits/{name}")["active_slots"] == 0
