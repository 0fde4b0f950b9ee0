"""Training data of the DiT: text features of the captions and latents of the clips."""

from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.durable import durable, flow_run_name, prepare
from flows.recipe import Recipe
from tasks.encoding import latents, text_features
from tasks.encoding.latents import LatentsResult
from tasks.encoding.text_features import TextFeaturesResult

encode_texts = durable(text_features.text_features)
encode_latents = durable(latents.latents)


@dataclass(frozen=True)
class Extracted:
    """Results of the steps of extraction."""

    text_features: TextFeaturesResult
    latents: LatentsResult


@flow(name="extract", flow_run_name=flow_run_name, persist_result=False)
def extract(
    root: str,
    recipe: Recipe | str = "demo",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> Extracted:
    """Encode captions with the text encoder and clips with the VAE.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        settings: overrides of the recipe by dotted name, e.g. {"latents.vae": "/models/vae"}.
        ray: address of the Ray cluster; empty: the recipe's `ray.address`.
        run_id: id of the run, which new rows record; empty: made from the current time.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id)
    return Extracted(text_features=encode_texts(run, plan.text_features), latents=encode_latents(run, plan.latents))
