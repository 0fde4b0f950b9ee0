"""Training under Ray Train with a toy model: two gloo workers, a dead worker, a killed driver, a lost node.

About three minutes on two free cores: each start of Ray Train costs ten to fifteen seconds.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch
from safetensors.torch import load_file

from pyramid_model.train.config import OptimConfig
from pyramid_model.weights.record import TrainedOn
from tasks.models.tracking import RegistryError
from tasks.running.errors import StepError, machine_lost
from tasks.running.run import RayConfig, Run
from tasks.tables.delta import read_table
from tasks.training.curve import Curve, progress_detail
from tasks.training.job import Job, TrainingConfig
from tasks.training.line import identify
from tasks.training.training import run_training
from tasks.training.workers import _machine_lost, on_gpu

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
OPTIM = OptimConfig(num_steps=8, batch_size=2, lr=0.01, warmup_steps=2, log_every=1, checkpoint_every=1)


def toy_class() -> type:
    """A training of one linear layer; local, so that Ray ships it by value."""

    class Toy:
        num_train, num_val, bad = 4, 1, ()

        def __init__(self, device, dies_at=None, diverges_at=None, pause_s=0.0, log=None):
            self.dies_at, self.diverges_at, self.pause_s, self.log = dies_at, diverges_at, pause_s, log

        def describe(self):
            return ["4 clips, 2 of them twice"]

        def objective(self):
            import torch

            class Objective(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = torch.nn.Linear(4, 1)

                def forward(self, *batches):
                    losses = [(self.layer(x) - x.sum(1, keepdim=True)).square().mean() for x in batches]
                    return sum(losses) / len(losses), {"part": losses[0].detach()}

            torch.manual_seed(0)
            return Objective()

        def probe(self, objective):
            pass

        def initialise(self, objective):
            pass

        def baselines(self, objective):
            return {"val_loss_of_a_guess": 7.0}

        def batch(self, step, index):
            from pyramid_model.train.batches import step_generator
            from pyramid_model.train.loop import Batch

            time.sleep(self.pause_s)
            died = Path(f"{self.dies_at[1]}{step}") if self.dies_at else None
            if died and step in self.dies_at[0] and index == 1 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.log:
                with open(self.log, "a") as file:
                    file.write(f"{step}\n")
            x = toy_samples(step_generator(0, step, index))
            return Batch((x * float("nan") if step == self.diverges_at else x,), [f"clip-{index}"])

        def largest(self):
            from pyramid_model.train.batches import step_generator
            from pyramid_model.train.loop import Batch

            return "8x8x1@1", Batch((toy_samples(step_generator(0, 0, 0)),), ["clip-0"])

        def validate(self, objective):
            import torch

            with torch.no_grad():
                return {"val_loss": float(objective(torch.eye(4))[0])}

        def save(self, objective, folder):
            from safetensors.torch import save_file

            save_file(objective.state_dict(), f"{folder}/diffusion_pytorch_model.safetensors")
            Path(folder, "config.json").write_text("{}")

    def toy_samples(generator):
        import torch

        return torch.randn(2, 4, generator=generator)

    return Toy


def toy_job(
    root: Path | str,
    num_workers: int | tuple[int, int],
    num_batches: int = 0,
    clips=("a", "b"),
    continue_from="",
    address="local",
    **arguments,
) -> Job:
    """A training of two clips. num_batches: 0: one for each worker."""
    config = TrainingConfig(optim=OPTIM, num_workers=num_workers, num_batches=num_batches or num_workers)
    run = Run(root=str(root), ray=RayConfig(address=address, num_cpus=2))
    ids = identify(run, "vae", "1", config, continue_from, TrainedOn(), clips)
    return Job("vae", ids, run, config, partial(toy_class(), **arguments))


def undisturbed_weights(num_batches: int, folder: Path, num_steps: int = OPTIM.num_steps) -> str:
    """Weights hash of the same training in this process, without Ray: one call sees all batches of a step.

    num_steps: with more than those of a training, others continue it.
    """
    from pyramid_model.train.loop import Batch, TrainState, train
    from pyramid_model.weights.weights import weights_hash

    toy = toy_class()("cpu")
    state = TrainState.start(toy.objective(), OPTIM)
    while state.step < num_steps:
        state.begin(OPTIM, {})
        train(state, OPTIM, lambda step: [Batch(tuple(toy.batch(step, i).args[0] for i in range(num_batches)), [])])
    state.use_ema()
    folder.mkdir()
    toy.save(state.objective, str(folder))
    return weights_hash(folder)


@pytest.fixture(scope="module")
def trained(ray_local, tmp_path_factory) -> tuple[Job, dict]:
    """A training on two workers of which one was killed twice, and its row."""
    root = tmp_path_factory.mktemp("trained")
    job = toy_job(root, 2, dies_at=((3, 5), str(root / "died")))
    result = run_training(job, "train_vae", "1")
    assert sorted(path.name for path in root.glob("died*")) == ["died3", "died5"]
    assert (result.num_in, result.num_ok, result.rows) == (1, 1, {"models": 1})
    assert result.busy_s > 0
    return job, read_table(job.run.root, "models").to_pylist()[0]


def test_two_workers_end_with_the_same_weights_bit_for_bit_although_one_died_twice(trained, tmp_path):
    assert trained[1]["weights_hash"] == undisturbed_weights(2, tmp_path / "model")


def test_a_training_leaves_weights_figures_curve_and_its_last_and_best_checkpoint(trained):
    job, row = trained
    metrics, curve = json.loads(row["metrics"]), json.loads(row["curve"])
    assert [point["step"] for point in curve] == list(range(9))
    assert metrics["val_loss"] < metrics["val_loss_untrained"]
    assert (metrics["num_train"], metrics["num_parameters"]) == (4, 5)
    assert row["uri"] == job.uri == os.path.join(job.run.root, "models", f"vae-{job.model_id}")
    assert sorted(os.listdir(job.uri)) == ["config.json", "diffusion_pytorch_model.safetensors", "training.json"]
    assert set(os.listdir(job.checkpoints)) == {"step-00000008", f"step-{metrics['best_step']:08}"}
    assert (row["line_id"], row["data_id"]) == (job.ids.line_id, job.ids.data_id)
    assert (row["first_step"], row["num_steps"], row["parent_id"]) == (0, 8, "")


def test_a_training_continues_with_new_clips_on_another_number_of_workers(trained, tmp_path):
    job, row = trained
    root = shutil.copytree(job.run.root, tmp_path / "root")
    assert toy_job(root, 2, continue_from="newest").model_id == job.model_id
    longer = toy_job(root, 1, 2, clips=("a", "b", "c"), continue_from="newest")
    assert run_training(longer, "train_vae", "1").num_ok == 1
    child = read_table(str(root), "models", where=pc.field("model_id") == longer.model_id).to_pylist()[0]
    assert (child["parent_id"], child["line_id"]) == (job.model_id, row["line_id"])
    assert child["data_id"] != row["data_id"]
    assert (child["first_step"], child["num_steps"]) == (8, 8)
    assert child["weights_hash"] == undisturbed_weights(2, tmp_path / "model", num_steps=16)
    assert [point["step"] for point in json.loads(child["curve"])] == list(range(8, 17))
    metrics = json.loads(child["metrics"])
    assert metrics["val_loss_untrained"] == json.loads(row["metrics"])["val_loss_untrained"]
    again = toy_job(root, 1, 2, clips=("a", "b", "c"), continue_from="newest")
    assert run_training(again, "train_vae", "1").num_done == 1


def test_mlflow_holds_the_whole_curve_once(trained):
    from tasks.models.tracking import client

    job, row = trained
    mlflow = client(job.run.root)
    points = mlflow.get_metric_history(row["mlflow_run_id"], "loss")
    assert [point.step for point in points] == list(range(1, 9))
    assert mlflow.get_run(row["mlflow_run_id"]).data.tags["weights_hash"] == row["weights_hash"]
    metrics = mlflow.get_run(row["mlflow_run_id"]).data.metrics
    assert all(len(mlflow.get_metric_history(row["mlflow_run_id"], name)) > 1 for name in metrics)


def test_the_same_training_again_does_nothing_and_imports_nothing_heavy(trained):
    job, _ = trained
    code = f"""
import sys
from tasks.running.run import Run
from tasks.training.job import Job, TrainingConfig
from tasks.training.ids import TrainingIds
from tasks.training.training import run_training
ids = TrainingIds(model_id={job.model_id!r}, line_id="", data_id="")
job = Job("vae", ids, Run(root={job.run.root!r}), TrainingConfig(), object)
result = run_training(job, "train_vae", "1")
assert (result.num_in, result.num_done, result.uri) == (1, 1, {job.uri!r}), result
assert not {{"ray", "torch", "mlflow", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert read_table(job.run.root, "models").num_rows == 1


def test_weights_that_were_saved_before_a_kill_are_recorded_without_training_again(trained, tmp_path):
    job, row = trained
    again = toy_job(tmp_path, 2)
    shutil.copytree(job.uri, again.uri)
    result = run_training(again, "train_vae", "1")
    assert "workers_start_s" not in result.timings
    assert read_table(again.run.root, "models").to_pylist()[0]["weights_hash"] == row["weights_hash"]


def test_a_killed_driver_costs_no_bit_and_no_step_before_the_last_checkpoint(ray_local, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_workers import toy_job
from tasks.training.training import run_training
run_training(toy_job({str(tmp_path)!r}, 1, pause_s=2), "train_vae", "1")
"""
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    job = toy_job(tmp_path, 1, log=str(tmp_path / "steps"))
    give_up = time.monotonic() + 300
    while not Path(job.checkpoints, "step-00000002").exists() and time.monotonic() < give_up:
        assert driver.poll() is None
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert read_table(job.run.root, "models").num_rows == 0
    newest = max(int(path.name.removeprefix("step-")) for path in Path(job.checkpoints).glob("step-*"))
    run_training(job, "train_vae", "1")
    steps = sorted(map(int, Path(job.training.keywords["log"]).read_text().split()))
    assert steps == list(range(steps[0], 8))
    assert steps[0] >= newest  # workers of the killed driver may live on for a moment
    [row] = read_table(job.run.root, "models").to_pylist()
    assert row["weights_hash"] == undisturbed_weights(1, tmp_path / "model")
    assert [point["step"] for point in json.loads(row["curve"])] == list(range(9))


def test_a_lost_node_makes_a_training_on_fewer_workers_with_the_same_model(tmp_path):
    code = f"""
import os, sys, threading, time; sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from ray.cluster_utils import Cluster
from test_workers import toy_job
from tasks.training.training import run_training
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
other = cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
job = toy_job({str(tmp_path)!r}, (1, 2), 3, address="auto", pause_s=0.5, log={str(tmp_path / "steps")!r})
def lose_node():
    while not Path(job.checkpoints, "step-00000002").exists():
        time.sleep(0.05)
    cluster.remove_node(other, allow_graceful=False)
threading.Thread(target=lose_node, daemon=True).start()
run_training(job, "train_vae", "1")
import ray
ray.shutdown()
cluster.shutdown()
"""
    # Ray Train first tries to start two workers again, since its list of nodes is older than the loss.
    environment = os.environ | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600, env=environment)
    [row] = read_table(str(tmp_path), "models").to_pylist()
    assert [point["step"] for point in json.loads(row["curve"])] == list(range(9))
    calls = Counter((tmp_path / "steps").read_text().split())
    assert calls["0"] == 4  # on two workers, each two of three batches
    assert calls["7"] == 3  # on one worker
    undisturbed_weights(3, tmp_path / "model")
    files = [Path(folder, "diffusion_pytorch_model.safetensors") for folder in (row["uri"], tmp_path / "model")]
    trained, undisturbed = map(load_file, files)
    for name, weight in undisturbed.items():
        torch.testing.assert_close(trained[name], weight)


def test_a_diverged_training_names_step_and_clips_and_is_not_tried_again(ray_local, tmp_path):
    with pytest.raises(StepError, match=r"TrainingDiverged.*at step 4.*clip-0"):
        run_training(toy_job(tmp_path, 1, diverges_at=3), "train_vae", "1")
    assert read_table(str(tmp_path), "models").num_rows == 0

    from tasks.models.tracking import TrainingLog

    job = toy_job(tmp_path, 1)
    experiment = TrainingLog(job.run, "vae", "other", {}).experiment
    runs = TrainingLog(job.run, "vae", "other", {}).client.search_runs([experiment], "attributes.status = 'FAILED'")
    assert [run.data.tags["model_id"] for run in runs] == [job.model_id]


def test_more_workers_than_the_cluster_holds_are_refused_instead_of_waiting(ray_local):
    from tasks.running.cluster import connect

    connect(RayConfig(num_cpus=2))
    with pytest.raises(StepError, match="64 workers of 1 CPUs need 64 CPUs"):
        on_gpu(TrainingConfig(num_workers=64, num_batches=64))
    with pytest.raises(StepError, match="set use_gpu to auto"):
        on_gpu(TrainingConfig(use_gpu="yes"))


def test_a_training_that_lost_its_machines_may_be_tried_again_and_one_that_failed_may_not():
    from ray.exceptions import NodeDiedError
    from ray.train import ControllerError, WorkerGroupError

    assert _machine_lost(WorkerGroupError("two workers", {0: RuntimeError("gloo"), 1: NodeDiedError("gone")}))
    assert _machine_lost(ControllerError(NodeDiedError("gone")))
    assert not _machine_lost(WorkerGroupError("one worker", {0: RuntimeError("CUDA out of memory")}))


def test_progress_has_loss_speed_and_the_time_that_is_left():
    row = {"step": 40, "loss": 0.31234, "tokens_per_s": 12000.4, "mfu": 0.412, "step_s": 0.5}
    assert progress_detail(row, 600) == "loss 0.3123, 12,000 tokens/s, MFU 41%, 5 min left"
    assert progress_detail({"step": 0, "val_loss": 1.0}, 640) == ""


@pytest.fixture
def no_mlflow(monkeypatch) -> None:
    """A tracking server that is not there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_a_training_whose_curve_has_no_place_does_not_start(no_mlflow, tmp_path):
    with pytest.raises(RegistryError, match=r"MLflow server http://127\.0\.0\.1:9 does not answer") as raised:
        run_training(toy_job(tmp_path, 1), "train_vae", "1")
    assert machine_lost(raised.value)
    assert not os.listdir(tmp_path)


def test_an_outage_of_mlflow_is_a_warning_and_its_rows_are_logged_afterwards(no_mlflow, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("tasks.training.curve.LOG_AGAIN_S", 0.0)
    job = toy_job(tmp_path, 1)
    curve = Curve(job.run, job.kind, job.model_id, job.config.model_dump(mode="json"), 0)
    curve.add([{"step": 1, "loss": 0.5}])
    assert "MLflow does not take the curve" in caplog.text

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/back.db")
    curve.add([{"step": 2, "loss": 0.25}])
    points = curve.log.client.get_metric_history(curve.log.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.25)]
