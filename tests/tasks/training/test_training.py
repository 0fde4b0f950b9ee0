"""Facts about trainings whose model was made before."""

from pyramid_model.weights.record import TrainedModel
from tasks.models.folders import find_model
from tasks.models.tracking import client
from tasks.running.run import Run, lineage
from tasks.tables.appending import append_block
from tasks.tables.delta import read_table
from tasks.tables.rows import ok_row
from tasks.training.ids import TrainingIds
from tasks.training.job import Job
from tasks.training.train_vae import TrainVAEConfig, VAETraining
from tasks.training.training import _log, run_training


def trained(run: Run, seed: int) -> Job:
    """A training whose model is in the table."""
    config = TrainVAEConfig.model_validate({"optim": {"seed": seed}})
    ids = TrainingIds(model_id=f"model {seed}", line_id=f"line {seed}", data_id="clips")
    job = Job("vae", ids, run, config, VAETraining)
    facts = {"weights_hash": f"weights {seed}", "config": "{}", "metrics": "{}"}
    row = ok_row({}, model_id=job.model_id, kind="vae", uri=job.uri, **facts)
    append_block(run.root, "models", [row], job.model_id, lineage(run, "train_vae", "1", config))
    return job


def test_a_model_that_was_trained_before_is_the_newest_again(tmp_path):
    run = Run(root=str(tmp_path))
    first, second = trained(run, 1), trained(run, 2)
    assert find_model(run, "vae").hash == "weights 2"
    for job, weights_hash in ((first, "weights 1"), (second, "weights 2"), (first, "weights 1")):
        result = run_training(job, "train_vae", "1")
        assert (result.num_done, result.weights_hash) == (1, weights_hash)
        assert find_model(run, "vae").hash == weights_hash
    run_training(first, "train_vae", "1")
    assert read_table(run.root, "models", newest=False).num_rows == 5


def test_the_kept_checkpoints_are_models_of_the_mlflow_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    job = trained(Run(root=str(tmp_path)), 1)
    curve = [{"step": step, "val_loss": abs(step - 4) + 1.0} for step in (0, 2, 4, 6)]
    record = TrainedModel(
        kind="vae", model_id=job.model_id, weights_hash="w", settings={}, metrics={"best_step": 4}, curve=curve
    )
    run_id = _log(job, record)
    mlflow = client(job.run.root)
    models = mlflow.search_logged_models([mlflow.get_run(run_id).info.experiment_id])
    steps = {model.name: model.params["val_loss"] for model in models}
    assert steps == {"step-00000004": "1.0", "step-00000006": "3.0"}
