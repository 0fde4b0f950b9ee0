"""`pyramid parity`: compares our models with recorded results of the original implementation."""

from pathlib import Path
from typing import Annotated

import typer

MARKS = {
    "pass": "[green]pass[/]",
    "FAIL": "[red]FAIL[/]",
    "error": "[red]error[/]",
    "unsupported": "[dim]unsupported[/]",
}


def parity(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of reference cases, or one case")],
) -> None:
    """Run every reference case under DIR and print the error of our numbers.

    A case is a folder with config.json and safetensors files. Its row has the error that is largest relative to its
    tolerance. Exit code 1: a case fails or cannot be read, or none could be compared. Unsupported cases are listed.

    Example: `pyramid parity tests/pyramid_model/parity`
    """
    if not folder.is_dir():
        _refuse(f"{folder} is not a folder: give one that holds reference cases")
    from rich.console import Console
    from rich.markup import escape

    from flows.cli.manifest_view import grid
    from pyramid_model.parity.run import all_passed, find_cases, run_cases

    total = len(find_cases(folder))
    if not total:
        _refuse(f"no case under {folder}: a case is a folder with config.json and safetensors files")
    console, results = Console(), []
    with console.status("starting") as status:
        for result in run_cases(folder):
            results.append(result)
            status.update(f"{len(results)} of {total} cases")
    rows = [
        [
            escape(r.name),
            f"{r.worst.error:.1e}" if r.worst else "",
            f"{r.worst.tolerance:.1e}" if r.worst else "",
            MARKS[r.verdict],
            escape(r.worst.name) if r.worst else "",
        ]
        for r in results
    ]
    names = ["case", "max abs error", "tolerance", "verdict", "of"]
    console.print(grid(names, rows, right=("max abs error", "tolerance")))
    for result in results:
        if result.note:
            console.print(f"{MARKS[result.verdict]} {escape(result.note)}", highlight=False, soft_wrap=True)
    counts = {verdict: sum(r.verdict == verdict for r in results) for verdict in MARKS}
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    console.print(f"{total} cases: {summary}", highlight=False)
    if not all_passed(results):
        raise typer.Exit(1)


def _refuse(message: str) -> None:
    from flows.cli.launch import BAD_INPUT, complain

    complain(message)
    raise typer.Exit(BAD_INPUT)
