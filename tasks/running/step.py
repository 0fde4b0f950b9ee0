"""What every pipeline step shares: where a run writes, what it reports, and how it is recorded.

A step is a plain function `(run, config) -> StepResult` in the module of its own name; the class that its return
annotation names is what its result is read back as from JSON. `@step` times it, records its result under
`<root>/runs/`, and hands it to a Ray cluster as a job when `ray.address` is `jobs:http://…`.
"""

import functools
import time
from typing import Protocol, TypeVar, get_type_hints

from pyramid_model.config import Config
from tasks.running.run import STEPS, Run, StepResult
from tasks.tables import storage

C = TypeVar("C", bound=Config)
C_in = TypeVar("C_in", bound=Config, contravariant=True)
R = TypeVar("R", bound=StepResult)
R_out = TypeVar("R_out", bound=StepResult, covariant=True)


class StepFunction(Protocol[C_in, R_out]):
    """A function `(run, config) -> result`, named like its module."""

    __name__: str

    def __call__(self, run: Run, config: C_in, /) -> R_out:
        """Do what is missing and say what was done."""
        ...


def config_class(function: StepFunction[C, StepResult]) -> type[C]:
    """Class of a step's settings: the annotation of its parameter `config`."""
    return get_type_hints(function)["config"]


def result_class(function: StepFunction[C, R]) -> type[R]:
    """Class of a step's result: its return annotation."""
    return get_type_hints(function)["return"]


def step(function: StepFunction[C, R]) -> StepFunction[C, R]:
    """Make a step of a plain function: timed, recorded under `<root>/runs/<run_id>/`, submitted as a job when asked."""

    @functools.wraps(function)
    def recorded(run: Run, config: C) -> R:
        name = function.__name__
        STEPS.info("%s started", name, extra={"step": name, "event": "started"})
        started = time.time()
        if run.ray.address.startswith("jobs:"):
            from tasks.running.jobs import submit_step

            return _finished(run, submit_step(name, run, config, result_class(function)), started)
        storage.check_writable(run.root)
        return _finished(run, function(run, config), started, record=True)

    return recorded


def _finished(run: Run, result: R, started: float, record: bool = False) -> R:
    """Stamp the wall time, keep the result where reports and benchmarks find it, and announce it."""
    result = type(result).model_validate(dict(result, wall_s=time.time() - started))
    if record:
        name = f"{int(started * 1000)}-{result.step}.json"
        storage.write_bytes(storage.join(run.root, "runs", run.run_id, name), result.model_dump_json().encode())
    STEPS.info("%s finished", result.step, extra={"step": result.step, "event": "finished", "result": result})
    return result
