"""What every flow does with its steps. Runs in about 5 s."""

import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import torch
import yaml
from prefect.states import Failed
from ray.exceptions import NodeDiedError

from flows.durable import _failed_machine
from tasks.running.errors import StepError

DEPLOYMENTS = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]


def caused(err: Exception, cause: Exception) -> Exception:
    err.__cause__ = cause
    return err


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError(), True),
        (StepError("a node died", transient=True), True),
        (caused(StepError("stopped"), TimeoutError()), True),
        (pickle.loads(pickle.dumps(StepError("from another process", transient=True))), True),
        (StepError("no disk space"), False),
        (caused(StepError("stopped"), ValueError("crf")), False),
        (requests.exceptions.ReadTimeout(), True),
        (NodeDiedError("gone"), True),
        (torch.OutOfMemoryError("CUDA"), False),
        (ValueError("crf"), False),
    ],
    ids=repr,
)
def test_only_what_a_lost_machine_caused_is_tried_again(error, again):
    assert _failed_machine(None, None, Failed(data=error)) is again


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_deployments_give_what_flows_take_and_leave_settings_to_single_runs(deployment):
    """A run's `settings` replace the deployment's as a whole, so nothing may be kept in there."""
    module, _, function = deployment["entrypoint"].rpartition(".")
    taken = inspect.signature(getattr(importlib.import_module(module), function).fn).parameters
    assert {"root", "recipe", "ray"} <= set(deployment["parameters"]) <= set(taken) - {"settings"}


def test_ray_and_settings_of_a_run_are_both_heeded():
    code = """
from flows.durable import prepare
run, plan = prepare("/data/none", "smoke", {"clips.crf": 33, "ray.num_cpus": 3}, ray="jobs:http://head:8265")
assert (run.ray.address, run.ray.num_cpus, plan.clips.crf) == ("jobs:http://head:8265", 3, 33)
assert prepare("/data/none", "smoke", ray="")[0].ray.address == "local"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.server
def test_the_page_where_a_step_can_be_watched_is_an_artifact_from_its_first_progress_on(prefect_server, tmp_path):
    code = f"""
from prefect import flow
from flows.durable import durable, forward_logs
from pyramid_model.config import Config
from tasks.running.run import Run, StepResult, report_progress
class Nothing(Config):
    pass
def watched(run: Run, config: Nothing) -> StepResult:
    for done in range(3):
        report_progress("watched", done, 3, link="http://mlflow:5000/#/runs/7")
    raise RuntimeError("stopped in the middle")
@flow
def watching():
    forward_logs()
    durable(watched)(Run(root={str(tmp_path)!r}), Nothing())
watching()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=prefect_server.environment
    )
    assert "stopped in the middle" in done.stderr
    body = {"artifacts": {"key": {"any_": ["watch-watched"]}}}
    [artifact] = prefect_server.call("POST", "/artifacts/filter", body)
    assert "http://mlflow:5000/#/runs/7" in artifact["data"]
