"""What every pipeline step shares: where a run writes, what it reports, and how it is recorded.

A step is a plain function `(run, config) -> StepResult` in the module of its own name. `@step` times it, records its
result under `<root>/runs/`, and hands it to a Ray cluster as a job when `ray.address` is `jobs:http://…`.
"""

import functools
import time
from collections.abc import Callable
from typing import TypeVar

from pyramid_model.config import Config
from tasks.running.run import STEPS, Run, StepResult
from tasks.tables import storage

C = TypeVar("C", bound=Config)
StepFunction = Callable[[Run, C], StepResult]


def step(function: StepFunction[C]) -> StepFunction[C]:
    """Make a step of a plain function: timed, recorded under `<root>/runs/<run_id>/`, submitted as a job when asked."""

    @functools.wraps(function)
    def recorded(run: Run, config: C) -> StepResult:
        name = function.__name__
        STEPS.info("%s started", name, extra={"step": name, "event": "started"})
        started = time.time()
        if run.ray.address.startswith("jobs:"):
            from tasks.running.jobs import submit_step

            return _finished(run, submit_step(name, run, config), started)
        storage.check_writable(run.root)
        return _finished(run, function(run, config), started, record=True)

    return recorded


def _finished(run: Run, result: StepResult, started: float, record: bool = False) -> StepResult:
    """Stamp the wall time, keep the result where reports and benchmarks find it, and announce it."""
    result = StepResult.model_validate(result.model_dump() | {"wall_s": time.time() - started})
    if record:
        name = f"{int(started * 1000)}-{result.step}.json"
        storage.write_bytes(storage.join(run.root, "runs", run.run_id, name), result.model_dump_json().encode())
    STEPS.info("%s finished", result.step, extra={"step": result.step, "event": "finished", "result": result})
    return result
