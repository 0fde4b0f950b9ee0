"""The steps by name: their modules, from which the classes of their settings and results follow."""

import importlib
from typing import Any

from tasks.running.run import StepResult
from tasks.running.step import StepFunction, result_class

# Module of each step, in the order of the pipeline; the step's function has its module's name.
STEP_MODULES = {
    "ingest": "tasks.sources.ingest",
    "clips": "tasks.cutting.clips",
    "scores": "tasks.scoring.scores",
    "duplicates": "tasks.selecting.duplicates",
    "select": "tasks.selecting.select",
    "captions": "tasks.captioning.captions",
    "text_features": "tasks.encoding.text_features",
    "train_vae": "tasks.training.train_vae",
    "latents": "tasks.encoding.latents",
    "train_dit": "tasks.training.train_dit",
    "evaluate": "tasks.evaluating.evaluate",
    "register": "tasks.evaluating.register",
    "generate": "tasks.generating.generate",
    "report": "tasks.report.report",
}


def find_step(name: str) -> StepFunction[Any, StepResult]:
    """The step function of that name.

    Raises:
        ValueError: no step has this name.
    """
    if name not in STEP_MODULES:
        raise ValueError(f"there is no step {name!r}: the steps are {', '.join(STEP_MODULES)}")
    return getattr(importlib.import_module(STEP_MODULES[name]), name)


def read_result(record: str | bytes) -> StepResult:
    """The result of a step from the JSON of its record, of the class of its step.

    Of a command that is no step, and of fields that this version does not have, only those of the class are read.
    """
    counts = StepResult.model_validate_json(record, extra="ignore")
    if counts.step not in STEP_MODULES:
        return counts
    return result_class(find_step(counts.step)).model_validate_json(record, extra="ignore")
