"""`pyramid weights`: inspects model folders and released directories, and exports checkpoints."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import echo, echo_json

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from pyramid_model.config import LatentNorm
    from pyramid_model.weights.weights_report import Part, Report

app = typer.Typer(no_args_is_help=True, help="Inspect model folders, and export checkpoints of trainings.")

MAX_PROBLEMS = 3  # problems of one kind printed for each part; the others are only counted
OF_TENSORS = ("missing", "unexpected", "shape")  # first words of problems that name a tensor, not a file


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="model folder, or a whole released directory")],
    with_hash: Annotated[
        bool, typer.Option("--hash", help="also hash VAE and DiTs, which reads all their data")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the same as JSON")] = False,
) -> None:
    """List the parts in DIR and check that they are complete: kinds, sizes, settings, names and shapes of all tensors.

    Reads only configs and file headers, so it is fast for any size. Exit code 1: something is wrong or missing.

    Example: `pyramid weights inspect pyramid-flow-miniflux`
    """
    from flows.cli.launch import BAD_INPUT, FAILURE, complain

    if not folder.is_dir():
        complain(f"{folder} is not a folder: give one that holds config.json and weights, or a released directory")
        raise typer.Exit(BAD_INPUT)
    from pyramid_model.weights.weights_report import inspect_weights

    report = inspect_weights(folder, with_hash)
    if as_json:
        echo_json(_as_json(report), indent=1)
    else:
        _print(report)
    if not report.is_complete:
        raise typer.Exit(FAILURE)


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="folder step-… of a checkpoint, or of all checkpoints: the newest")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="new folder for config.json and the weights")],
) -> None:
    """Write the averaged weights of a CHECKPOINT to DIR in the layout of released models, as safetensors.

    Example: `pyramid weights export ./mine/checkpoints/MODEL_ID ./my-dit`
    """
    from flows.cli.launch import FAILURE, complain
    from pyramid_model.train.checkpoints import DamagedCheckpoint
    from tasks.running.errors import StepError
    from tasks.training.export import export_checkpoint

    try:
        step = export_checkpoint(checkpoint, folder)
    except (StepError, DamagedCheckpoint) as err:
        complain(str(err))
        raise typer.Exit(FAILURE) from err
    echo(f"{folder}: weights of step {step}")


def _as_json(report: "Report") -> dict:
    from dataclasses import asdict

    norm = report.latent_norm
    complete = {"is_complete": report.is_complete}
    return asdict(report) | {"latent_norm": norm.model_dump() if norm else None} | complete


def _print(report: "Report") -> None:
    from flows.cli.console import PlainConsole, styled
    from flows.cli.manifest_view import grid
    from tasks.inspecting.table_stats import file_size

    console = PlainConsole()
    if report.parts:
        title = f"a released directory, {report.variant} variant" if report.variant else "one model"
        console.print(styled((Path(report.folder).resolve().name, "bold"), f": {title}"), soft_wrap=True)
        names = ["part", "kind", "params", "dtype", "size", "tensors"]
        table = grid(names, [_row(part) for part in report.parts], right=("params", "size", "tensors"))
        table.box, table.padding = None, (0, 2, 0, 0)  # so that the folder names fit into 80 characters
        console.print("", table, "", _settings(report), "", sep="\n")
    problems = [*report.problems, *(line for part in report.parts for line in _problems(part))]
    for problem in problems:
        console.print(styled(("wrong:", "red"), f" {problem}"), soft_wrap=True)
    if report.is_complete:
        size = file_size(sum(part.size_bytes for part in report.parts))
        rest = f", {size}: every tensor has the name and shape that its config asks for"
        console.print(styled(("complete", "green"), rest))


def _row(part: "Part") -> "list[str | Text]":
    from flows.cli.console import styled
    from tasks.inspecting.table_stats import file_size

    is_all = part.num_tensors == part.num_expected
    counts = f"{part.num_tensors or ''}" if is_all else f"{part.num_tensors} of {part.num_expected}"
    wrong = counts if " of " in counts else f"{counts} wrong".strip()
    return [
        part.name,
        part.kind,
        _count(part.num_parameters) if part.num_parameters else "",
        ", ".join(part.dtypes or ()),
        file_size(part.size_bytes) if part.size_bytes else "",
        styled((wrong, "red") if part.problems else (counts or "ok", "green")),
    ]


def _settings(report: "Report") -> "Table":
    """Settings of each part and constants of the latents; equal settings are printed once."""
    from rich.table import Table

    from flows.cli.console import styled

    lines, first_part = Table.grid(padding=(0, 2)), {}
    for part in report.parts:
        facts = "; ".join(f"{name} {_word(value)}" for name, value in part.facts.items())
        if facts:
            lines.add_row(part.name, styled((first_part.get(facts, facts), "dim")))
            first_part.setdefault(facts, f"as {part.name}")
        if part.weights_hash:
            lines.add_row("", styled((f"hash {part.weights_hash}", "dim")))
    if norm := report.latent_norm:
        first, rest = (f"shift {shift:g} scale 1/{1 / scale:.5g}" for shift, scale in _constants(norm))
        lines.add_row("latent norm", styled((f"first frame {first}; later frames {rest}; of the variant", "dim")))
    return lines


def _problems(part: "Part") -> list[str]:
    """Lines for the problems of a part: the first few of each kind, and the number of others."""
    lines = []
    for sort, group in groupby(part.problems, key=lambda problem: problem.split()[0].rstrip(":")):
        problems = list(group)
        lines += [f"{part.name}: {p}" if sort in OF_TENSORS else p for p in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"{part.name}: {sort}: {len(problems) - MAX_PROBLEMS} more; --json names them")
    return lines


def _constants(norm: "LatentNorm") -> list[tuple[float, float]]:
    return [(norm.first_shift, norm.first_scale), (norm.rest_shift, norm.rest_scale)]  # pyright: ignore


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _count(number: int) -> str:
    """Short form of a count: 812, 12.3 k, 335 M, 1.97 G."""
    size, unit = float(number), ""
    for unit in ("", " k", " M", " G"):
        if size < 1000 or unit == " G":
            break
        size /= 1000
    return f"{size:.3g}{unit}"
