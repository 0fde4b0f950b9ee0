"""The decorator `@step` of pipeline steps.

A step is a plain function `(run, config) -> StepResult` in the module of its own name. Its return annotation is the
class as which its result is read from JSON. `@step` times it, records its result under `<root>/runs/`, and submits it
as a job to a Ray cluster when `ray.address` is `jobs:http://…`.
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
    """A function `(run, config) -> result` with the name of its module."""

    __name__: str

    def __call__(self, run: Run, config: C_in, /) -> R_out:
        """Compute what is missing and return the counts."""
        ...


def config_class(function: StepFunction[C, StepResult]) -> type[C]:
    """Class of a step's settings: the annotation of its parameter `config`."""
    return get_type_hints(function)["config"]


def result_class(function: StepFunction[C, R]) -> type[R]:
    """Class of a step's result: its return annotation."""
    return get_type_hints(function)["return"]


def step(function: StepFunction[C, R]) -> StepFunction[C, R]:
    """Decorate a plain function: time it, record its result, or submit it as a job (see the module docstring)."""

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
    """The result with its wall time; logged, and with `record` written under `<root>/runs/<run_id>/`. started: s."""
    result = type(result).model_validate(dict(result, wall_s=time.time() - started, links=run.links | result.links))
    if record:
        name = f"{int(started * 1000)}-{result.step}.json"
        storage.write_bytes(storage.join(run.root, "runs", run.run_id, name), result.model_dump_json().encode())
    STEPS.info("%s finished", result.step, extra={"step": result.step, "event": "finished", "result": result})
    return result
