"""MLflow runs of trainings on the default SQLite file: curves, final status, links, two processes at once."""

import subprocess
import sys

import pytest

from tasks.models.tracking import LAST_SEEN, LINKS, TrainingLog, run_url
from tasks.running.run import Run


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Run(root=str(tmp_path), links={"ray_job": "pyramid-train-vae-1", "prefect_url": "http://prefect/runs/7"})


def test_a_resumed_training_goes_on_with_its_own_curve(run):
    rows = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(4)]
    log = TrainingLog(run, "vae", "m1", {"optim": {"lr": 0.1}})
    log.add(rows[:3])
    log.end("FAILED")
    again = TrainingLog(run, "vae", "m1", {"optim": {"lr": 0.1}})
    assert again.client.get_run(log.run_id).info.status == "RUNNING"
    again.add(rows)
    assert again.finish({"loss": 0.25, "num_train": 7}, {"uri": "there"}) == log.run_id
    history = again.client.get_metric_history(log.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(row["step"], row["loss"]) for row in rows]
    stored = again.client.get_run(log.run_id)
    assert stored.data.params["optim.lr"] == "0.1"
    assert stored.info.status == "FINISHED"
    # Charts are curves: what has one value for the whole training is a tag.
    assert set(stored.data.metrics) == {"loss"}
    assert stored.data.tags["result.num_train"] == "7"


def test_a_kept_checkpoint_is_a_model_of_the_run_with_its_figures_once(run):
    log = TrainingLog(run, "vae", "m1", {})
    for _ in range(2):
        log.add_checkpoint(700, "s3://bucket/checkpoints/m1/step-00000700", {"step": 700, "val_loss": 0.25})
    (model,) = log.client.search_logged_models([log.experiment])
    assert (model.name, model.source_run_id, str(model.status)) == ("step-00000700", log.run_id, "READY")
    assert model.params == {"step": "700", "val_loss": "0.25"}
    assert model.tags["uri"] == "s3://bucket/checkpoints/m1/step-00000700"


def test_the_run_names_where_it_came_from(run):
    tags = TrainingLog(run, "vae", "m1", {}).client.search_runs(["1"])[0].data.tags
    assert (tags["root"], tags["run_id"], tags["ray_job"]) == (run.root, run.run_id, "pyramid-train-vae-1")
    assert "http://prefect/runs/7" in tags[LINKS]


def test_the_next_training_ends_the_runs_of_killed_ones(run):
    killed, live = (TrainingLog(run, "vae", name, {}) for name in ("killed", "live"))
    killed.client.set_tag(killed.run_id, LAST_SEEN, "1000")
    log = TrainingLog(run, "vae", "next", {})
    states = {name: log.client.get_run(other.run_id).info.status for name, other in [("k", killed), ("l", live)]}
    assert states == {"k": "KILLED", "l": "RUNNING"}


def test_two_first_trainings_of_a_root_may_start_at_once(run):
    code = f"""
from tasks.models.tracking import TrainingLog
from tasks.running.run import Run
import sys
TrainingLog(Run(root={run.root!r}), "vae", sys.argv[1], {{}}).add([{{"step": 1, "loss": 0.5}}])
"""
    both = [subprocess.Popen([sys.executable, "-c", code, name], stderr=subprocess.PIPE) for name in ("a", "b")]
    ends = [process.communicate(timeout=180)[1].decode()[-2000:] for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    log = TrainingLog(run, "vae", "a", {})
    assert len(log.client.search_runs([log.experiment])) == 2


def test_only_a_server_has_addresses(run, monkeypatch):
    assert run_url(run.root, "r1") == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    assert run_url(run.root, "r1") == "http://mlflow:5000/#/runs/r1"
