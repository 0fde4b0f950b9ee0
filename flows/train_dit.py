"""Train the diffusion transformer on latents and text features."""

from typing import Any

from prefect import flow

from flows.artifacts import publish_training
from flows.durable import durable, flow_run_name, prepare
from flows.recipe import Recipe
from tasks.training import train_dit as step
from tasks.training.train_dit import TrainDiTResult

fit_dit = durable(step.train_dit)


@flow(name="train-dit", flow_run_name=flow_run_name, persist_result=False)
def train_dit(
    root: str,
    recipe: Recipe | str = "demo",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> TrainDiTResult:
    """Train a DiT, unless one exists with these settings, latents and captions.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        settings: overrides of the recipe by dotted name, e.g. {"train_dit.optim.num_steps": 5000}.
        ray: address of the Ray cluster; empty: the recipe's `ray.address`.
        run_id: id of the run, which new rows record; empty: made from the current time.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id)
    trained = fit_dit(run, plan.train_dit)
    publish_training(run, trained)
    return trained
