"""What the console shows of a step."""

import io

from rich.console import Console

from flows.cli.progress import Progress, describe
from tasks.running.run import STEPS, StepResult

DONE = StepResult(
    step="clips", num_in=8, num_ok=7, num_failed=1, errors={"truncated": 1}, rows={"clips": 24}, note="2 shots"
)


def test_counts_errors_and_rows_are_one_phrase():
    assert describe(DONE) == "8 in: 7 ok, 1 failed (1 truncated) → 24 clips; 2 shots"
    assert describe(StepResult(step="clips", num_in=8, num_done=8)) == "8 in: nothing new"


def test_without_a_terminal_a_finished_step_is_a_plain_line():
    output = io.StringIO()
    with Progress(Console(file=output, width=120)):
        STEPS.info("started", extra={"step": "clips", "event": "started"})
        STEPS.info("finished", extra={"step": "clips", "event": "finished", "result": DONE})
    [line] = output.getvalue().splitlines()
    assert line.split() == ["!", "clips", "0.0", "s", *describe(DONE).split()]


def test_a_step_that_an_error_ends_is_named():
    output = io.StringIO()
    try:
        with Progress(Console(file=output, width=120)):
            STEPS.info("started", extra={"step": "scores", "event": "started"})
            raise ValueError("wrong")
    except ValueError:
        pass
    assert "scores" in output.getvalue()
    assert output.getvalue().rstrip().endswith("stopped")
