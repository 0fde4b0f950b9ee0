"""One command for each flow. A command reads the results of earlier flows from the tables of `--root`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.generate import generate
from flows.cli.options import DATA_ROOT, RayAddress, RecipeName, RetryFailed, Root, Settings, Source
from flows.cli.settings import combined, command_recipe, common_options

if TYPE_CHECKING:
    from flows.recipe import Recipe


def curate(
    source: Source = "",
    root: Root = DATA_ROOT,
    recipe: RecipeName = "demo",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the source would give, and write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print one JSON object.")] = False,
) -> None:
    """Find videos, cut them into clips at shots, score the clips, find duplicates, select the good clips.

    Example: `pyramid curate --source ~/videos --root /data/pyramid`

    Example: `pyramid curate --source ~/dataset/metadata.csv --dry-run`
    """
    from flows.cli.launch import launch

    if dry_run or as_json:
        from flows.cli.dry_run import show_source

        show_source(lambda: _curate_recipe(recipe, settings, common_options(source, ray, retry_failed)), root, as_json)
        return
    launch("curate", root, lambda: _curate_recipe(recipe, settings, common_options(source, ray, retry_failed)))


def _curate_recipe(recipe: str, pairs: Sequence[str] | None, options: Mapping[str, Any]) -> "Recipe":
    """The recipe with the settings of the command; an error if it would read the sample because no source is named."""
    from flows.recipe import load_recipe, parse_settings, recipe_names

    settings = combined(parse_settings(pairs or ()), options)
    if recipe in recipe_names() and not {"ingest", "ingest.source"} & set(settings):
        raise ValueError(
            "no videos are named: give --source FOLDER, or a recipe file of your own with `ingest.source`. "
            "The sample videos belong to `pyramid demo` and `pyramid run demo`"
        )
    return load_recipe(recipe, settings)


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

    options = common_options(ray=ray, retry_failed=retry_failed)
    launch("recaption", root, lambda: command_recipe(recipe, settings, options))


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

    options = common_options(ray=ray, retry_failed=retry_failed)
    launch("extract", root, lambda: command_recipe(recipe, settings, options))


def train_vae(
    root: Root = DATA_ROOT, recipe: RecipeName = "demo", settings: Settings = None, ray: RayAddress = None
) -> None:
    """Train the video VAE on the selected clips.

    Example: `pyramid train-vae --root /data/pyramid --set train_vae.optim.num_steps=2000`
    """
    from flows.cli.launch import launch

    launch("train_vae", root, lambda: command_recipe(recipe, settings, common_options(ray=ray)))


def train_dit(
    root: Root = DATA_ROOT, recipe: RecipeName = "demo", settings: Settings = None, ray: RayAddress = None
) -> None:
    """Train the diffusion transformer on latents and text features.

    Example: `pyramid train-dit --root /data/pyramid --set train_dit.optim.num_steps=5000`
    """
    from flows.cli.launch import launch

    launch("train_dit", root, lambda: command_recipe(recipe, settings, common_options(ray=ray)))


def evaluate(
    root: Root = DATA_ROOT, recipe: RecipeName = "demo", settings: Settings = None, ray: RayAddress = None
) -> None:
    """Evaluate the newest model on held-out clips; it becomes the champion if it passes the gate.

    Example: `pyramid evaluate --root /data/pyramid`
    """
    from flows.cli.launch import launch

    launch("evaluate_and_gate", root, lambda: command_recipe(recipe, settings, common_options(ray=ray)))


def mount(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (curate, recaption, extract, train_vae, train_dit, evaluate, generate):
        app.command(command.__name__.replace("_", "-"), rich_help_panel="One flow at a time")(command)
