"""Captions for the selected clips."""

from typing import Any

from prefect import flow

from flows.durable import durable, flow_run_name, prepare
from flows.recipe import Recipe
from tasks.captioning import captions
from tasks.captioning.config import CaptionsResult

caption_clips = durable(captions.captions)


@flow(name="recaption", flow_run_name=flow_run_name, persist_result=False)
def recaption(
    root: str,
    recipe: Recipe | str = "demo",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> CaptionsResult:
    """Caption every selected clip that has no caption yet.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        settings: overrides of the recipe by dotted name, e.g. {"captions.sidecar": "captions.csv"}.
        ray: address of the Ray cluster; empty: the recipe's `ray.address`.
        run_id: id of the run, which new rows record; empty: made from the current time.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id)
    return caption_clips(run, plan.captions)
