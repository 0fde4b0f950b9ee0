"""Evaluation of a DiT on held-out clips, and the gate's verdict on it."""

import json
from functools import partial

import pyarrow.compute as pc

from pyramid_model.config import identity
from pyramid_model.weights.record import TrainedOn
from tasks.evaluating.config import EvaluateConfig, EvaluateResult, Subject
from tasks.evaluating.evaluator import EvaluationItem, Evaluator
from tasks.models.encoders import find_encoder
from tasks.models.folders import ModelSet, find_model, read_record
from tasks.models.gate import Check, failures
from tasks.models.registry import champion
from tasks.running.errors import StepError
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run
from tasks.running.step import step
from tasks.running.work import PerItemWork
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.training.pairs import explain_no_pairs, find_pairs, pair_source
from tasks.training.train_dit import TrainDiTConfig

VERSION = "5"


@step
def evaluate(run: Run, config: EvaluateConfig) -> EvaluateResult:
    """Measure a model on held-out clips and let the gate decide. Returns an earlier verdict on the same model and data.

    Raises:
        StepError: there is no model, or no held-out clip has a latent and a caption.
    """
    subject = find_subject(run, config)
    question = _question(config, subject)
    earlier_id = _earlier_verdict(run, question, subject)
    evaluation_id = earlier_id or content_id(question, subject.rival.dit.hash if subject.rival else "")
    item: EvaluationItem = {"evaluation_id": evaluation_id, "question": question}
    work = PerItemWork(
        step="evaluate",
        version=VERSION,
        config=config,
        worker=partial(Evaluator, subject=subject, config=config, folder=run.media("evaluations", evaluation_id)),
        done_table="evaluations",
        block_size=1,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    result = run_blocks(run, work, [] if earlier_id else [item], num_done=int(bool(earlier_id)))
    row = read_table(run.root, "evaluations", where=pc.field("evaluation_id") == evaluation_id).to_pylist()[0]
    checks = [Check.model_validate(check) for check in json.loads(row["checks"])]
    verdict = "passed the gate" if row["passed"] else f"did not pass the gate: {failures(checks)}"
    return EvaluateResult(
        **dict(result, note=f"{config.candidate} model {verdict}"),
        evaluation_id=evaluation_id,
        passed=row["passed"],
        candidate=config.candidate,
        dit=subject.models.dit.uri,
    )


def find_subject(run: Run, config: EvaluateConfig) -> Subject:
    """The DiT with its VAE, text encoder and data. Empty settings are taken from the training of the DiT.

    Raises:
        StepError: a model is missing, or no held-out clip has a latent and a caption.
    """
    dit = find_model(run, "dit", config.dit)
    record = read_record(dit.uri)
    if config.candidate == "untrained" and record is None:
        raise StepError(
            f"{dit.uri} was not trained here, so its untrained weights are not known: evaluate it as trained"
        )
    trained_on = record.trained_on if record else TrainedOn()
    vae = find_model(run, "vae", config.vae or (trained_on.vae.uri if trained_on.vae else ""))
    encoder = find_encoder(run, config.encoder or (trained_on.encoder.uri if trained_on.encoder else ""))
    weights = TrainDiTConfig.model_validate(record.settings).caption_weights if record else {}
    source = pair_source(
        run,
        config.selection or trained_on.selection,
        config.captions or trained_on.captions,
        vae,
        encoder.hash,
        weights,
    )
    val = find_pairs(source, "val")[: config.num_val_clips]
    if not val:
        raise StepError(explain_no_pairs(source, "val"))
    best = champion(run.root) if config.candidate == "trained" else None
    return Subject(
        candidate=config.candidate,
        models=ModelSet(dit=dit, vae=vae, encoder=encoder),
        record=record,
        source=source,
        train=find_pairs(source, "train"),
        val=val,
        rival=None if best and best.dit.hash == dit.hash else best,
    )


def _question(config: EvaluateConfig, subject: Subject) -> str:
    """Identity of an evaluation: settings, models and data, without the champion."""
    data = [[pair.latent_id, pair.text_feature_id] for pair in (*subject.val, *subject.train)]
    return content_id(VERSION, identity(config), subject.models.hashes, data)


def _earlier_verdict(run: Run, question: str, subject: Subject) -> str:
    """Id of an evaluation that already answers the question.

    An evaluation against an earlier champion does not count, unless this model is champion itself.
    """
    rows = read_table(run.root, "evaluations", ["evaluation_id", "metrics"], where=pc.field("status") == "ok")
    for row in rows.to_pylist():
        figures = json.loads(row["metrics"])
        if figures["question"] == question and (subject.rival is None or figures["champion"] == subject.rival.dit.hash):
            return row["evaluation_id"]
    return ""
