"""`pyramid parity`: compares our models with recorded results of the original implementation."""

from pathlib import Path
from typing import Annotated

import typer

MARKS = {
    "pass": ("pass", "green"),
    "FAIL": ("FAIL", "red"),
    "error": ("error", "red"),
    "unsupported": ("unsupported", "dim"),
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
    from flows.cli.console import PlainConsole, styled
    from flows.cli.manifest_view import grid
    from pyramid_model.parity.run import all_passed, find_cases, run_cases

    total = len(find_cases(folder))
    if not total:
        _refuse(f"no case under {folder}: a case is a folder with config.json and safetensors files")
    console, results = PlainConsole(), []
    with console.status("starting") as status:
        for result in run_cases(folder):
            results.append(result)
            status.update(f"{len(results)} of {total} cases")
    rows = [
        [
            r.name,
            f"{r.worst.error:.1e}" if r.worst else "",
            f"{r.worst.tolerance:.1e}" if r.worst else "",
            styled(MARKS[r.verdict]),
            r.worst.name if r.worst else "",
        ]
        for r in results
    ]
    names = ["case", "max abs error", "tolerance", "verdict", "of"]
    console.print(grid(names, rows, right=("max abs error", "tolerance")))
    for result in results:
        if result.note:
            console.print(styled(MARKS[result.verdict], f" {result.note}"), soft_wrap=True)
    counts = {verdict: sum(r.verdict == verdict for r in results) for verdict in MARKS}
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    console.print(f"{total} cases: {summary}")
    if not all_passed(results):
        raise typer.Exit(1)


def _refuse(message: str) -> None:
    from flows.cli.launch import BAD_INPUT, complain

    complain(message)
    raise typer.Exit(BAD_INPUT)
