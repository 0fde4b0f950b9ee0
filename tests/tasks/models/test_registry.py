"""The MLflow registry on its default SQLite file (about 20 s: MLflow's import and its first migration)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.models import registry
from tasks.models.tracking import RegistryError, TrainingLog, client, tracking_uri
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.rows import Lineage

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
    with pytest.raises(RegistryError, match=r"val_loss_to_untrained is 0.99, limit 0.9"):
        registry.promote(run, evaluated(run, "bad", passed=False))
    with pytest.raises(RegistryError, match="run the evaluate step"):
        registry.promote(run, "nowhere")
    assert registry.champion(run.root) is None


def test_promotion_is_idempotent_reversible_and_noticed_by_the_next_reader(run):
    first = registry.promote(run, evaluated(run, "a"))
    assert registry.promote(run, "evaluation-a") == first == registry.champion(run.root)

    # An evaluation that knew another champion (here: none) says nothing about the present one.
    with pytest.raises(RegistryError, match="present champion"):
        registry.promote(run, evaluated(run, "stale"))
    second = registry.promote(run, evaluated(run, "b", champion="a"))
    assert registry.champion(run.root) == second
    assert (first.version, second.version) == ("1", "2")

    # The first weights again: the alias moves back, no third version appears.
    assert registry.promote(run, evaluated(run, "a", champion="b")).version == "1"
    mlflow = client(run.root)
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
    first, second = (Run(root=str(tmp_path / place / "videos")) for place in ("a", "b"))
    registry.promote(first, evaluated(first, "a"))
    assert registry.champion(second.root) is None
    registry.promote(second, evaluated(second, "b"))
    assert registry.champion(first.root).dit.hash == "a"
    logs = [TrainingLog(run, "vae", "m1", {}) for run in (first, second)]
    assert logs[0].run_id != logs[1].run_id


def test_only_a_model_that_is_not_there_is_made(run, monkeypatch):
    """A server that does not answer is no reason to register."""
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    candidate = registry._passing_candidate(run.root, evaluated(run, "a"))[0]
    with pytest.raises(MlflowException, match="registered-models/get"):
        registry._registered_version(run, client(run.root), candidate)


@pytest.fixture(params=["file", "server"])
def registry_run(request, run, monkeypatch, tmp_path, free_port) -> Iterator[Run]:
    """The root with its own SQLite file, and with a tracking server."""
    if request.param == "file":
        yield run
        return
    port = free_port()
    store = f"sqlite:///{tmp_path}/server.db"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", f"{tmp_path}/artifacts"]
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=quiet)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while not is_healthy(url):
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield run
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


def is_healthy(url: str) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    return False


def test_mlflow_downloads_the_champion_by_its_alias(registry_run, tmp_path):
    folder = Path(registry_run.models("dit-a"))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"depth": 2}')
    registry.promote(registry_run, evaluated(registry_run, "a"))
    code = f"""
import mlflow
mlflow.artifacts.download_artifacts("models:/{registry.model_name(registry_run.root)}@champion", dst_path="copy")
"""
    store = {"MLFLOW_TRACKING_URI": tracking_uri(registry_run.root)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, env=os.environ | store)
    assert [file.read_text() for file in (tmp_path / "copy").rglob("config.json")] == ['{"depth": 2}']
