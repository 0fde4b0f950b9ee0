"""The MLflow registry on its default SQLite file (about 20 s: MLflow's import and its first migration)."""

import json
import os
import subprocess
import sys

import pytest

from tasks.models import registry
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.delta import Lineage

LINEAGE = Lineage("test", "evaluate", "1", "", "")


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Run(root=str(tmp_path))


def evaluated(run: Run, name: str, passed: bool = True, champion: str = "") -> str:
    """An evaluation row of the model `name`; returns its id."""
    folders = {"dit": (f"dit-{name}", name), "vae": ("vae-1", "vae"), "encoder": ("text-1", "t5")}
    models = {part: {"uri": run.models(folder), "hash": content} for part, (folder, content) in folders.items()}
    figures = {"models": models, "champion": champion}
    check = {"name": "val_loss_to_untrained", "value": 0.99, "limit": 0.9, "passed": passed, "rule": "learns"}
    row = {
        "evaluation_id": f"evaluation-{name}{champion and '-' + champion}",
        "model_id": f"model-{name}",
        "weights_hash": name,
        "vae_hash": "vae",
        "metrics": json.dumps(figures),
        "checks": json.dumps([check]),
        "passed": passed,
        "media": [],
    }
    append_block(run.root, "evaluations", [row], f"{name}-{champion}", LINEAGE)
    return row["evaluation_id"]


def test_there_is_no_champion_and_no_mlflow_before_the_first_promotion(run):
    assert registry.champion(run.root) is None
    assert not (os.path.exists(f"{run.root}/mlflow"))


def test_a_model_whose_evaluation_failed_is_refused_with_the_reason(run):
    with pytest.raises(registry.RegistryError, match=r"val_loss_to_untrained is 0.99, limit 0.9"):
        registry.promote(run, evaluated(run, "bad", passed=False))
    with pytest.raises(registry.RegistryError, match="run the evaluate step"):
        registry.promote(run, "nowhere")
    assert registry.champion(run.root) is None


def test_promotion_is_idempotent_reversible_and_noticed_by_the_next_reader(run):
    first = registry.promote(run, evaluated(run, "a"))
    assert registry.promote(run, "evaluation-a") == first == registry.champion(run.root)

    # An evaluation that knew another champion (here: none) says nothing about the present one.
    with pytest.raises(registry.RegistryError, match="present champion"):
        registry.promote(run, evaluated(run, "stale"))
    second = registry.promote(run, evaluated(run, "b", champion="a"))
    assert registry.champion(run.root) == second
    assert (first.version, second.version) == ("1", "2")

    # The first weights again: the alias moves back, no third version appears.
    assert registry.promote(run, evaluated(run, "a", champion="b")).version == "1"
    mlflow = registry.client(run.root)
    assert len(mlflow.search_model_versions(f"name = '{registry.model_name(run.root)}'")) == 2

    by_hand = (registry.model_name(run.root), registry.ALIAS, "2")
    mlflow.set_registered_model_alias(*by_hand)  # behind our back
    assert registry.champion(run.root) == second

    code = (
        "import sys; from tasks.models import registry; "
        f"assert registry.champion({run.root!r}).dit.hash == 'b'; assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_roots_that_share_a_tracking_store_have_a_champion_and_curves_each(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    one, other = (Run(root=str(tmp_path / place / "videos")) for place in ("a", "b"))
    registry.promote(one, evaluated(one, "a"))
    assert registry.champion(other.root) is None
    registry.promote(other, evaluated(other, "b"))
    assert registry.champion(one.root).dit.hash == "a"
    logs = [registry.TrainingLog(run.root, "vae", "m1", {}) for run in (one, other)]
    assert logs[0].run_id != logs[1].run_id


def test_only_a_model_that_is_not_there_is_made(run, monkeypatch):
    """A server that does not answer is no reason to register."""
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    candidate = registry._passing_candidate(run.root, evaluated(run, "a"))[0]
    with pytest.raises(MlflowException, match="registered-models/get"):
        registry._registered_version(registry.client(run.root), registry.model_name(run.root), candidate)


def test_a_resumed_training_goes_on_with_its_own_curve(run):
    rows = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(4)]
    log = registry.TrainingLog(run.root, "vae", "m1", {"optim": {"lr": 0.1}})
    log.add(rows[:3])
    again = registry.TrainingLog(run.root, "vae", "m1", {"optim": {"lr": 0.1}})
    again.add(rows)
    assert again.finish({"val_psnr": 20.0}, {"uri": "there"}) == log.run_id
    history = again.client.get_metric_history(log.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(row["step"], row["loss"]) for row in rows]
    stored = again.client.get_run(log.run_id)
    assert stored.data.params["optim.lr"] == "0.1"
    assert stored.data.metrics["final/val_psnr"] == 20.0
    assert stored.info.status == "FINISHED"
