"""`pyramid demo` and `pyramid run`: the whole pipeline, from raw videos to generated clips."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.cli.options import RayAddress, RetryFailed, Root, Settings, Source
from flows.cli.settings import command_recipe, common_options


def demo(
    root: Root = "./pyramid-demo",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Run the whole pipeline on the sample videos: cut, score, caption, train VAE and DiT, evaluate, generate, report.

    A second run on the same root has nothing to do.

    Example: `pyramid demo --root ./pyramid-demo`
    """
    _run_all(root, "demo", settings, common_options(ray=ray, retry_failed=retry_failed))


def run(
    recipe: Annotated[str, typer.Argument(help="demo, smoke, 384p, 768p, or the path of a YAML file.")],
    source: Source = "",
    root: Root = "./pyramid-data",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Run the whole pipeline on your videos with the settings of a recipe.

    Example: `pyramid run 384p --source ~/videos --root /data/pyramid --set train_dit.optim.num_steps=20000`
    """
    _run_all(root, recipe, settings, common_options(source, ray, retry_failed))


def _run_all(root: str, recipe: str, settings: list[str] | None, options: Mapping[str, Any]) -> None:
    """Run the flow data-to-model with live progress, then print where its results are."""
    from flows.cli.launch import launch
    from flows.cli.summary import print_summary

    started = time.monotonic()
    launch("data_to_model", root, lambda: command_recipe(recipe, settings, options))
    print_summary(root, started)


def mount(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("demo")(demo)
    app.command("run")(run)
