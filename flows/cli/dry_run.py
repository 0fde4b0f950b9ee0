"""`pyramid curate --dry-run`: what a source would give."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from flows.cli.console import echo
from flows.cli.launch import complain

if TYPE_CHECKING:
    from flows.recipe import Recipe

USAGE = 2  # exit code of a source that cannot be read
MAX_PROBLEMS = 10


def show_source(make_recipe: "Callable[[], Recipe]", root: str, as_json: bool) -> None:
    """Print layout, files, captions, the first rows, and what is left out and why.

    Args:
        make_recipe: gives the recipe, whose section `ingest` names the source.
        root: of the tables; a source that contains it is read without it.
        as_json: print one JSON object: {"layout", "videos", "captions", "problems"}, or {"error"}.

    Raises:
        typer.Exit: with code 2, nothing can be read.
    """
    from tasks.sources.preview import preview

    try:
        seen = preview(make_recipe().ingest, root)
    except (ValueError, OSError) as err:
        if as_json:
            echo(json.dumps({"error": str(err)}))
        else:
            complain(str(err))
        raise typer.Exit(USAGE) from None
    if as_json:
        facts = asdict(seen)
        del facts["rows"]
        echo(json.dumps(facts))
        return
    echo(f"{seen.layout}\n{seen.videos} videos, {seen.captions} with a caption\n")
    for row in seen.rows:
        echo(f"  {row['video']}: {row['caption'] or 'no caption'}")
    if seen.videos > len(seen.rows):
        echo(f"  … and {seen.videos - len(seen.rows)} more")
    for problem in seen.problems[:MAX_PROBLEMS]:
        echo(f"\nnot used: {problem['where']}: {problem['error']}")
    if len(seen.problems) > MAX_PROBLEMS:
        echo(f"\n… and {len(seen.problems) - MAX_PROBLEMS} more problems")
    echo("\nnothing was written")
