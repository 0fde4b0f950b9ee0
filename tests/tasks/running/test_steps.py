"""The map of steps: every step has its settings and its result, and a record is read as its step's result."""

import json

import pytest

from tasks.running.run import StepResult
from tasks.running.step import config_class, result_class
from tasks.running.steps import STEP_MODULES, find_step, read_result
from tasks.selecting.select_config import SelectResult


@pytest.mark.parametrize("name", STEP_MODULES)
def test_every_step_has_the_name_of_its_module_and_tells_its_classes(name):
    step = find_step(name)
    assert step.__name__ == name == STEP_MODULES[name].rpartition(".")[2]
    assert config_class(step).__name__.endswith("Config")
    assert issubclass(result_class(step), StepResult)


def test_an_unknown_step_is_named_beside_those_that_exist():
    with pytest.raises(ValueError, match=r"no step 'cut': the steps are ingest, clips"):
        find_step("cut")


def test_a_record_is_read_as_the_result_of_its_step():
    result = SelectResult(step="select", selection="a", shortage="too few")
    assert read_result(result.model_dump_json()) == result
    assert read_result(json.dumps({"step": "select", "selection": "a", "later": 1})) == SelectResult(
        step="select", selection="a"
    )
    assert read_result(json.dumps({"step": "export", "num_ok": 3, "folder": "x"})) == StepResult(
        step="export", num_ok=3
    )
