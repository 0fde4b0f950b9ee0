"""Common part of the trainings of VAE and DiT: settings, identity, and the record of a trained model.

The training itself runs under Ray Train, see `tasks.training.workers`, or on the ranks of torchrun, see
`tasks.training.torchrun`.
"""

import contextlib
import json
import time
from collections.abc import Mapping

import pyarrow.compute as pc
from pydantic import JsonValue

from pyramid_model.train.checkpoint_names import checkpoint_name
from pyramid_model.weights.record import TrainedModel
from tasks.models.folders import read_record
from tasks.models.tracking import TrainingLog, run_url
from tasks.running.run import lineage
from tasks.tables import storage
from tasks.tables.appending import append_again, append_block
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table, table_version
from tasks.tables.newest import ORDER, newest_row
from tasks.tables.rows import ModelRow, Row, ok_row
from tasks.training.job import RAY_FOLDER, Job, TrainingResult
from tasks.training.line import check_parent


def run_training(job: Job, step: str, step_version: str) -> TrainingResult:
    """Train the model unless it exists, record it, and return its location.

    A model whose weights are complete but whose row is missing (killed in between) is only recorded.

    Raises:
        StepError: the cluster is too small, the training diverged, or a worker failed for good.
    """
    if result := _trained_before(job, step, step_version):
        return result
    run = job.run
    timings: dict[str, float] = {}
    if read_record(job.uri) is None:
        if job.ids.parent:
            check_parent(job.kind, job.ids.parent)
        if job.check:
            job.check()
        from tasks.training import torchrun, workers

        timings = torchrun.fit(job, step) if torchrun.has_ranks() else workers.fit(job, step)
    record = read_record(job.uri)
    assert record is not None, "training ends with the record"
    started = time.time()
    mlflow_run = _log(job, record)
    row = _row(job, record, mlflow_run)
    timings["mlflow_s"] = time.time() - started
    block = content_id("models", job.model_id)
    append_block(run.root, "models", [row], block, lineage(run, step, step_version, job.config))
    _remove_state_of_ray(job)
    return TrainingResult(
        step=step,
        num_in=1,
        num_ok=1,
        rows={"models": 1},
        versions={"models": table_version(run.root, "models")},
        model_id=job.model_id,
        weights_hash=record.weights_hash,
        uri=job.uri,
        note=_summary(record.metrics),
        busy_s=timings.pop("busy_s", 0.0),
        timings=timings,
        links=_mlflow_links(run.root, mlflow_run),
    )


def _trained_before(job: Job, step: str, step_version: str) -> TrainingResult | None:
    """The result for a model that is in the table, which becomes the newest of its kind; None if it is not there."""
    run = job.run
    of_kind = (pc.field("status") == "ok") & (pc.field("kind") == job.kind)
    rows = read_table(run.root, "models", ["model_id", "weights_hash", "mlflow_run_id", *ORDER], where=of_kind)
    same = rows.filter(pc.field("model_id") == job.model_id).to_pylist()
    if not same:
        return None
    newest = newest_row(rows, ModelRow)
    if newest and newest["model_id"] != job.model_id:  # steps that use the newest model must use this one
        append_again(run.root, "models", [job.model_id], lineage(run, step, step_version, job.config))
    return TrainingResult(
        step=step,
        num_in=1,
        num_done=1,
        model_id=job.model_id,
        weights_hash=same[0]["weights_hash"],
        uri=job.uri,
        note="trained before",
        links=_mlflow_links(run.root, same[0]["mlflow_run_id"] or ""),
    )


def _log(job: Job, record: TrainedModel) -> str:
    """Log the record of the model to MLflow; returns the id of the MLflow run."""
    log = TrainingLog(job.run, job.kind, job.model_id, job.config.model_dump(mode="json"))
    log.add(record.curve)
    kept_steps = (record.metrics["best_step"], record.curve[-1]["step"])
    for row in record.curve:
        if row["step"] in kept_steps:
            step = int(row["step"])
            log.add_checkpoint(step, storage.join(job.checkpoints, checkpoint_name(step)), row)
    return log.finish(record.metrics, {"uri": job.uri, "weights_hash": record.weights_hash})


def _row(job: Job, record: TrainedModel, mlflow_run_id: str) -> Row:
    """Row of `models`."""
    return ok_row(
        {},
        model_id=job.model_id,
        kind=job.kind,
        weights_hash=record.weights_hash,
        uri=job.uri,
        line_id=job.ids.line_id,
        parent_id=job.ids.parent.model_id if job.ids.parent else "",
        data_id=job.ids.data_id,
        first_step=job.first_step,
        num_steps=job.config.optim.num_steps,
        config=record.model_dump_json(include={"settings", "trained_on"}),
        metrics=json.dumps(record.metrics),
        curve=json.dumps(record.curve),
        mlflow_run_id=mlflow_run_id,
        prefect_flow_run=job.run.links.get("prefect_flow_run", ""),
        ray_job=job.run.links.get("ray_job", ""),
    )


def _mlflow_links(root: str, mlflow_run: str) -> dict[str, str]:
    if not mlflow_run:
        return {}
    url = run_url(root, mlflow_run)
    return {"mlflow_run": mlflow_run} | ({"mlflow_url": url} if url else {})


def _summary(metrics: Mapping[str, JsonValue]) -> str:
    name = "val_psnr" if "val_psnr" in metrics else "val_loss"
    linear = f", linear codec {metrics['val_psnr_linear']:.4g}" if "val_psnr_linear" in metrics else ""
    return f"{name} {metrics[f'{name}_untrained']:.4g} untrained, {metrics[name]:.4g} trained{linear}"


def _remove_state_of_ray(job: Job) -> None:
    """Remove the files of Ray Train beside the checkpoints, which a later training may continue."""
    fs, path = storage.filesystem(storage.join(job.checkpoints, RAY_FOLDER))
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)
