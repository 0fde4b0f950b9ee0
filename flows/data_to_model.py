"""Everything, from raw videos to generated clips and a report."""

from typing import Any

from prefect import flow

from flows.curate import curate
from flows.durable import by_step, durable, flow_run_name, prepare
from flows.evaluate_and_gate import evaluate_and_gate, passed
from flows.extract import extract
from flows.generate import generate
from flows.recaption import recaption
from flows.recipe import Recipe, with_outputs
from flows.train_dit import train_dit
from flows.train_vae import train_vae
from tasks.report import report
from tasks.running.run import StepResult

write_report = durable(report.report)


class TooFewClips(RuntimeError):
    """What was selected cannot be trained on."""


class GateRefused(RuntimeError):
    """The trained model did not pass the gate; nothing was generated with it."""


@flow(name="data-to-model", flow_run_name=flow_run_name, persist_result=False)
def data_to_model(
    root: str,
    recipe: Recipe | str = "demo",
    source: str = "",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> dict[str, StepResult]:
    """Curate, caption, train, judge and generate; every part does only what is not done yet.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        source: folder of videos or text file with one path or URL a line; empty: the recipe's `ingest.source`.
        settings: overrides of the recipe by dotted name, e.g. {"train_dit.optim.num_steps": 5000}.
        ray: address of the Ray to work on; empty: the recipe's `ray.address`.
        run_id: lineage of the new rows; empty: the time.

    Returns:
        What each step did, by step name.

    Raises:
        TooFewClips: the selection cannot be trained on; its verdicts are in the tables.
        GateRefused: the gate did not let the trained model through.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id, source)
    results: dict[str, StepResult] = {}
    for part in (curate, recaption, train_vae, extract, train_dit, evaluate_and_gate):
        done = part(root=run.root, recipe=plan, run_id=run.run_id)
        plan = with_outputs(plan, done.values())
        results |= done
        if part is curate and (shortage := done["select"].outputs["shortage"]):
            raise TooFewClips(shortage)
    if passed(results["evaluate"]):
        results |= generate(root=run.root, recipe=plan, run_id=run.run_id)
    results |= by_step(write_report(run, plan.report))
    if not passed(results["evaluate"]):
        raise GateRefused(
            f"the trained model did not pass the gate ({results['evaluate'].note}), so nothing was generated. "
            "Train longer (train_dit.optim.num_steps) or on more clips; the limits stand in evaluate.gate."
        )
    return results
