"""`pyramid demo` and `pyramid run`: the whole pipeline, from raw videos to generated clips."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import RayAddress, RetryFailed, Root, Settings, Source
from flows.cli.settings import command_recipe, common_options

if TYPE_CHECKING:
    from flows.recipe import Recipe

DEMO_MINUTES = 2.5  # that both trainings of the demo take on two idle CPU cores


def demo(
    root: Root = "./pyramid-demo",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
    minutes: Annotated[
        float,
        typer.Option(min=0.5, help="Time of both trainings together, on two idle CPU cores; more steps in proportion."),
    ] = DEMO_MINUTES,
) -> None:
    """Run the whole pipeline on the sample videos: cut, score, caption, train VAE and DiT, evaluate, generate, report.

    A second run on the same root has nothing to do.

    Example: `pyramid demo --root ./pyramid-demo`
    """
    options = common_options(ray=ray, retry_failed=retry_failed)
    _run_all(root, lambda: trained_for(command_recipe("demo", settings, options), minutes / DEMO_MINUTES))


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
    _run_all(root, lambda: command_recipe(recipe, settings, common_options(source, ray, retry_failed)))


def trained_for(recipe: "Recipe", factor: float) -> "Recipe":
    """The recipe with `factor` times as many steps of both trainings; validations and checkpoints keep their number."""
    changed = recipe
    for part in ("train_vae", "train_dit"):
        training = getattr(recipe, part)
        names = ("num_steps", "warmup_steps", "val_every", "checkpoint_every")
        steps = {name: max(1, round(getattr(training.optim, name) * factor)) for name in names}
        optim = training.optim.model_copy(update=steps)
        changed = changed.model_copy(update={part: training.model_copy(update={"optim": optim})})
    return changed


def _run_all(root: str, recipe: Callable[[], "Recipe"]) -> None:
    """Run the flow data-to-model with live progress, then print where its results are."""
    from flows.cli.launch import launch
    from flows.cli.summary import print_summary

    started = time.monotonic()
    launch("data_to_model", root, recipe)
    print_summary(root, started)


def mount(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("demo")(demo)
    app.command("run")(run)
