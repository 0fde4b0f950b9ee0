"""Train the video VAE on the selected clips."""

from typing import Any

from prefect import flow

from flows.artifacts import publish_training
from flows.durable import durable, flow_run_name, prepare
from flows.recipe import Recipe
from tasks.training import train_vae as step
from tasks.training.job import TrainingResult

fit_vae = durable(step.train_vae)


@flow(name="train-vae", flow_run_name=flow_run_name, persist_result=False)
def train_vae(
    root: str,
    recipe: Recipe | str = "demo",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> TrainingResult | None:
    """Train a VAE, unless one with these settings on these clips exists, or the recipe names a VAE in `latents.vae`.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        settings: overrides of the recipe by dotted name, e.g. {"train_vae.optim.num_steps": 2000}.
        ray: address of the Ray cluster; empty: the recipe's `ray.address`.
        run_id: id of the run, which new rows record; empty: made from the current time.

    Returns:
        The trained VAE; None if the recipe names a VAE in `latents.vae`.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id)
    if plan.train_vae is None:
        return None
    trained = fit_vae(run, plan.train_vae)
    publish_training(run, trained)
    return trained
