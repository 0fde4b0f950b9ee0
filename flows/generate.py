"""Clips from prompts, with the champion model or with weights that are named."""

from typing import Any

from prefect import flow

from flows.artifacts import publish_generations
from flows.durable import durable, flow_run_name, prepare
from flows.recipe import Recipe
from tasks.generating import generate as step
from tasks.generating.config import GenerateResult

generate_clips = durable(step.generate)


@flow(name="generate", flow_run_name=flow_run_name, persist_result=False)
def generate(
    root: str,
    recipe: Recipe | str = "demo",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> GenerateResult:
    """Generate the recipe's prompts; what exists already is left alone.

    The model that is champion now does it, unless `generate.weights` names others.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        settings: overrides of the recipe by dotted name, e.g. {"generate.prompts": ["a rabbit in a meadow"]}.
        ray: address of the Ray to work on; empty: the recipe's `ray.address`.
        run_id: lineage of the new rows; empty: the time.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id)
    generated = generate_clips(run, plan.generate)
    publish_generations(run, generated)
    return generated
