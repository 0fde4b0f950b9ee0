"""A step in a process of its own, as a Ray job runs it: what its standard output says. Runs in about 5 s."""

import json
import subprocess
import sys

import pytest

CODE = """
import sys
import tasks.cutting.clips
from tasks.__main__ import main
from tasks.cutting.clips import ClipsConfig
from tasks.running.errors import StepError
from tasks.running.run import Run, StepResult, report_progress

def clips(run: Run, config: ClipsConfig) -> StepResult:
    for done in range(1001):
        report_progress("clips", done, 1000)
    raise {error}

tasks.cutting.clips.clips = clips
sys.exit(main(["clips", '{{"run": {{"root": "/data/none"}}, "config": {{}}}}']))
"""


def said_by_a_step_that_raises(error: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CODE.format(error=error)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    return done.stdout.splitlines()


def test_a_bug_leaves_its_traceback_and_a_quick_step_few_lines_of_progress():
    lines = said_by_a_step_that_raises("KeyError('uri')")
    assert "Traceback (most recent call last):" in lines
    assert json.loads(lines[-1].removeprefix("ERROR - ")) == {"message": "KeyError: 'uri'", "transient": False}
    done = [json.loads(line.removeprefix("PROGRESS "))["done"] for line in lines if line.startswith("PROGRESS ")]
    assert (done[0], done[-1]) == (0, 1000)
    assert len(done) < 10


@pytest.mark.parametrize("error", ["StepError('no space left')", "ValueError('crf')", "PermissionError('root')"])
def test_an_error_that_was_raised_for_people_leaves_its_message_alone(error):
    lines = said_by_a_step_that_raises(error)
    assert not [line for line in lines if "Traceback" in line]
    assert lines[-1].startswith("ERROR ")
