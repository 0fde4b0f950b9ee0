"""Facts about trainings whose model was made before."""

from tasks.models.folders import find_model
from tasks.running.run import Run, lineage
from tasks.tables.appending import append_block
from tasks.tables.delta import read_table
from tasks.tables.rows import ok_row
from tasks.training.job import Job
from tasks.training.line import TrainingIds
from tasks.training.train_vae import TrainVAEConfig, VAETraining
from tasks.training.training import run_training


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
