"""One command a flow. Each works alone: it reads what earlier flows left in the tables of `--root`."""

import json
from typing import Annotated

import typer

from flows.cli.options import RayAddress, RecipeName, RetryFailed, Root, Settings, Source

DATA_ROOT = "./pyramid-data"


def curate(
    source: Source = "",
    root: Root = DATA_ROOT,
    recipe: RecipeName = "demo",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Find videos, cut them into clips at shots, score the clips, select the good ones.

    Example: `pyramid curate --source ~/videos --root /data/pyramid`
    """
    from flows.cli.launch import launch

    launch("curate", root, recipe, settings, ingest__source=source, ray__address=ray, retry_failed=retry_failed)


def recaption(
    root: Root = DATA_ROOT,
    recipe: RecipeName = "demo",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Caption the selected clips.

    Example: `pyramid recaption --root /data/pyramid --set captions.sidecar=captions.csv`
    """
    from flows.cli.launch import launch

    launch("recaption", root, recipe, settings, ray__address=ray, retry_failed=retry_failed)


def extract(
    root: Root = DATA_ROOT,
    recipe: RecipeName = "demo",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Compute what the DiT trains on: text features of the captions, latents of the clips.

    Example: `pyramid extract --root /data/pyramid`
    """
    from flows.cli.launch import launch

    launch("extract", root, recipe, settings, ray__address=ray, retry_failed=retry_failed)


def train_vae(
    root: Root = DATA_ROOT, recipe: RecipeName = "demo", settings: Settings = None, ray: RayAddress = None
) -> None:
    """Train the video VAE on the selected clips.

    Example: `pyramid train-vae --root /data/pyramid --set train_vae.optim.num_steps=2000`
    """
    from flows.cli.launch import launch

    launch("train_vae", root, recipe, settings, ray__address=ray)


def train_dit(
    root: Root = DATA_ROOT, recipe: RecipeName = "demo", settings: Settings = None, ray: RayAddress = None
) -> None:
    """Train the diffusion transformer on latents and text features.

    Example: `pyramid train-dit --root /data/pyramid --set train_dit.optim.num_steps=5000`
    """
    from flows.cli.launch import launch

    launch("train_dit", root, recipe, settings, ray__address=ray)


def evaluate(
    root: Root = DATA_ROOT, recipe: RecipeName = "demo", settings: Settings = None, ray: RayAddress = None
) -> None:
    """Measure the newest model on held-out clips; the gate decides whether it becomes the champion.

    Example: `pyramid evaluate --root /data/pyramid`
    """
    from flows.cli.launch import launch

    launch("evaluate_and_gate", root, recipe, settings, ray__address=ray)


def generate(
    prompt: Annotated[str, typer.Argument(help="What the clip should show.")] = "",
    prompts: Annotated[str, typer.Option("--prompts", help="Text file with one prompt a line.")] = "",
    root: Root = DATA_ROOT,
    recipe: RecipeName = "demo",
    settings: Settings = None,
    ray: RayAddress = None,
) -> None:
    """Generate clips with the champion model; files land under ROOT/media/generated.

    Prompts that are given here replace those of the recipe.

    Example: `pyramid generate "a rabbit in a meadow" --root ./pyramid-demo`
    """
    from flows.cli.launch import launch

    launch("generate", root, recipe, [*asked_prompts(prompt, prompts), *(settings or ())], ray__address=ray)


def asked_prompts(prompt: str, file: str) -> list[str]:
    """Settings by which what the command line asks for, if anything, replaces all prompts of the recipe."""
    if not prompt and not file:
        return []
    values = {"prompts": [prompt] if prompt else [], "prompts_file": file}
    return [f"generate.{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]


def mount(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (curate, recaption, extract, train_vae, train_dit, evaluate, generate):
        app.command(command.__name__.replace("_", "-"), rich_help_panel="One flow at a time")(command)
