"""Trainings on the ranks of torchrun, without Ray and Prefect.

torchrun --nproc-per-node 8 -m flows.cli.torchrun train-dit --root /data/pyramid --recipe 384p
"""

import logging
import os
from typing import TYPE_CHECKING

import typer

from flows.cli.console import echo
from flows.cli.launch import BAD_INPUT, FAILURE, complain
from flows.cli.options import DATA_ROOT, RecipeName, Root, Settings
from flows.cli.settings import command_recipe
from tasks.running.errors import EXPECTED_ERRORS

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from tasks.training.job import TrainingResult

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command("train-vae")
def train_vae(root: Root = DATA_ROOT, recipe: RecipeName = "demo", settings: Settings = None) -> None:
    """Train the video VAE on the selected clips."""
    _run("train_vae", root, recipe, settings)


@app.command("train-dit")
def train_dit(root: Root = DATA_ROOT, recipe: RecipeName = "demo", settings: Settings = None) -> None:
    """Train the diffusion transformer on latents and text features."""
    _run("train_dit", root, recipe, settings)


def _run(step: str, root: str, recipe: str, settings: list[str] | None) -> None:
    """Run a step on the first rank, or its training on another one; prints folder and figures of the model.

    Raises:
        typer.Exit: with code 2 without ranks and 1 for a failure; the message has been printed. After a failure of one
            rank torchrun ends the others.
    """
    from tasks.training import torchrun

    if not torchrun.has_ranks():
        command = step.replace("_", "-")
        complain(f"there are no ranks: start this as torchrun --nproc-per-node N -m flows.cli.torchrun {command} …")
        raise typer.Exit(BAD_INPUT)
    if os.environ["RANK"] != "0":
        torchrun.serve()
        return
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pyramid").setLevel(logging.INFO)
    try:
        options = {"ray.address": "local", f"{step}.num_workers": int(os.environ["WORLD_SIZE"])}
        result = _trained(step, root, command_recipe(recipe, settings, options))
    except EXPECTED_ERRORS as err:
        complain(str(err))
        raise typer.Exit(FAILURE) from err
    echo(f"{result.uri}\n{result.note}")


def _trained(step: str, root: str, plan: "Recipe") -> "TrainingResult":
    """Train on all ranks with the settings of a recipe.

    Raises:
        StepError: the training failed.
        ValueError: the recipe trains no VAE.
    """
    from tasks.running.run import Run
    from tasks.training.torchrun import run_first
    from tasks.training.train_dit import train_dit
    from tasks.training.train_vae import train_vae

    run = Run(root=root, ray=plan.ray)
    if step == "train_dit":
        return run_first(train_dit, run, plan.train_dit)
    if plan.train_vae is None:
        raise ValueError("the recipe trains no VAE (train_vae: null): give train_vae.num_batches and others, by --set")
    return run_first(train_vae, run, plan.train_vae)


if __name__ == "__main__":
    app()
