"""One command for each flow. A command reads the results of earlier flows from the tables of `--root`."""

import typer

from flows.cli.generate import generate
from flows.cli.options import DATA_ROOT, RayAddress, RecipeName, RetryFailed, Root, Settings, Source


def curate(
    source: Source = "",
    root: Root = DATA_ROOT,
    recipe: RecipeName = "demo",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Find videos, cut them into clips at shots, score the clips, find duplicates, select the good clips.

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
    """Caption the selected clips: from caption files, or by a vision-language model.

    Example: `pyramid recaption --root /data/pyramid --set captions.sidecar=captions.csv`

    Example: `pyramid recaption --set captions.kind=dense --set captions.local.name=Qwen/Qwen2.5-VL-7B-Instruct`
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
    """Compute the training data of the DiT: text features of the captions, latents of the clips.

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
    """Evaluate the newest model on held-out clips; it becomes the champion if it passes the gate.

    Example: `pyramid evaluate --root /data/pyramid`
    """
    from flows.cli.launch import launch

    launch("evaluate_and_gate", root, recipe, settings, ray__address=ray)


def mount(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (curate, recaption, extract, train_vae, train_dit, evaluate, generate):
        app.command(command.__name__.replace("_", "-"), rich_help_panel="One flow at a time")(command)
