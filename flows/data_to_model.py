"""The whole pipeline, from raw videos to generated clips and a report."""

from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.curate import Curated, curate
from flows.durable import durable, flow_run_name, prepare
from flows.evaluate_and_gate import Judgement, evaluate_and_gate
from flows.extract import Extracted, extract
from flows.generate import generate
from flows.recaption import recaption
from flows.recipe import Recipe
from flows.step_inputs import with_captions, with_dit, with_features, with_selection, with_vae
from flows.train_dit import train_dit
from flows.train_vae import train_vae
from tasks.captioning.config import CaptionsResult
from tasks.generating.config import GenerateResult
from tasks.models.tracking import tracking_uri
from tasks.report import report
from tasks.report.report import ReportResult
from tasks.training.job import TrainingResult
from tasks.training.train_dit import TrainDiTResult

write_report = durable(report.report)


class TooFewClips(RuntimeError):
    """The selection has too few clips for a training."""


class GateRefused(RuntimeError):
    """The trained model did not pass the gate; nothing was generated with it."""


@dataclass(frozen=True)
class DataToModel:
    """Results of all flows, in their order."""

    curated: Curated
    captions: CaptionsResult
    vae: TrainingResult | None  # None: the recipe names a VAE
    extracted: Extracted
    dit: TrainDiTResult
    judgement: Judgement
    generated: GenerateResult
    report: ReportResult


@flow(name="data-to-model", flow_run_name=flow_run_name, persist_result=False)
def data_to_model(
    root: str,
    recipe: Recipe | str = "demo",
    source: str = "",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> DataToModel:
    """Curate, caption, train, evaluate and generate; each part does only work that is not done yet.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        source: folder of videos, list, shards or one video; path or URI; empty: the recipe's `ingest.source`.
        settings: overrides of the recipe by dotted name, e.g. {"train_dit.optim.num_steps": 5000}.
        ray: address of the Ray cluster; empty: the recipe's `ray.address`.
        run_id: id of the run, which new rows record; empty: made from the current time.

    Raises:
        TooFewClips: the selection has too few clips for a training; the table `selections` has the reasons.
        GateRefused: the trained model did not pass the gate.
        RegistryError: the root is an object store, and MLFLOW_TRACKING_URI is not set.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id, source)
    root, run_id = run.root, run.run_id
    tracking_uri(root)  # a training would stop without one, after hours of work on clips
    curated = curate(root=root, recipe=plan, run_id=run_id)
    if curated.select.shortage:
        raise TooFewClips(curated.select.shortage)
    plan = with_selection(plan, curated.select)
    captions = recaption(root=root, recipe=plan, run_id=run_id)
    plan = with_captions(plan, captions)
    vae = train_vae(root=root, recipe=plan, run_id=run_id)
    if vae:
        plan = with_vae(plan, vae)
    extracted = extract(root=root, recipe=plan, run_id=run_id)
    plan = with_features(plan, extracted.text_features, extracted.latents)
    dit = train_dit(root=root, recipe=plan, run_id=run_id)
    plan = with_dit(plan, dit)
    judgement = evaluate_and_gate(root=root, recipe=plan, run_id=run_id)
    if not judgement.evaluate.passed:
        write_report(run, plan.report)
        raise GateRefused(
            f"the trained model did not pass the gate ({judgement.evaluate.note}), so nothing was generated. "
            "Train longer (train_dit.optim.num_steps) or on more clips; evaluate.gate has the limits."
        )
    generated = generate(root=root, recipe=plan, run_id=run_id)
    page = write_report(run, plan.report)
    return DataToModel(curated, captions, vae, extracted, dit, judgement, generated, page)
