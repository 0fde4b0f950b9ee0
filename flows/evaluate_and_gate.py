"""Evaluate the newest model on held-out clips; it becomes champion if it passes the gate."""

from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.events import emit_event

from flows.alerts import emit_refusal
from flows.artifacts import publish_verdict
from flows.durable import durable, flow_run_name, prepare
from flows.recipe import Recipe, replaced
from tasks.evaluating import evaluate, register
from tasks.evaluating.config import EvaluateResult
from tasks.evaluating.register import RegisterConfig, RegisterResult

judge = durable(evaluate.evaluate)
promote = durable(register.register)
PROMOTED = "pyramid.champion.promoted"


class GateError(RuntimeError):
    """The gate accepted an untrained model, so its limits are too loose to judge a trained one."""


@dataclass(frozen=True)
class Judgement:
    """The gate's verdict on the trained model, and its registration."""

    evaluate: EvaluateResult
    register: RegisterResult | None = None  # None: the gate refused the model


@flow(name="evaluate-and-gate", flow_run_name=flow_run_name, persist_result=False)
def evaluate_and_gate(
    root: str,
    recipe: Recipe | str = "demo",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> Judgement:
    """Evaluate an untrained model, which must fail, then the trained one; register the trained one if it passes.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        settings: overrides of the recipe by dotted name, e.g. {"evaluate.gate.max_loss_to_untrained": 0.8}.
        ray: address of the Ray cluster; empty: the recipe's `ray.address`.
        run_id: id of the run, which new rows record; empty: made from the current time.

    Raises:
        GateError: the untrained model passed.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id)
    untrained = judge(run, replaced(plan.evaluate, candidate="untrained"))
    if untrained.passed:
        raise GateError("the gate lets an untrained model pass: make its limits tighter (evaluate.gate)")
    trained = judge(run, replaced(plan.evaluate, candidate="trained"))
    publish_verdict(run, trained)
    if not trained.passed:
        emit_refusal(run, trained.note)
        return Judgement(trained)
    champion = promote(run, RegisterConfig(evaluation_id=trained.evaluation_id))
    # Also emitted for a model that is champion already, since the run that promoted it may have died before emitting.
    # The event triggers `generate`, which does only what is missing.
    emit_event(PROMOTED, champion_resource(champion.model_id))
    return Judgement(trained, champion)


def champion_resource(model_id: str) -> dict[str, str]:
    """Resource of the event; the trigger in prefect.yaml matches its id."""
    return {"prefect.resource.id": f"pyramid.model.{model_id}"}
