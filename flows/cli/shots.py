"""`pyramid shots`: where the shots of any videos begin, without a run."""

import json
from typing import Annotated, Any

import typer

SHOWN_CUTS = 12  # of a file, in the table


def shots(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="videos: paths or URIs", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object: file, as given, to what was found")
    ] = False,
    method: Annotated[
        str, typer.Option("--method", help="adaptive, content, histogram, threshold, transnetv2 or stride")
    ] = "adaptive",
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="of the method; higher finds fewer cuts", show_default="its own")
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", metavar="PATH", help="TransNetV2 weights", show_default="in its package")
    ] = "",
    stride: Annotated[
        int, typer.Option("--stride", metavar="FRAMES", help="length of a shot with method stride")
    ] = 120,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="give a file up after so long")
    ] = 600,
) -> None:
    """Find the shots of FILEs; nothing is written.

    With --json each file has `cuts` (the first frame of every new shot, counted from 0 in the order in which frames
    leave the decoder), `gradual` (first and last frame of dissolves, fades and empty stretches), `fps` and `frames`
    (decoded); a damaged one also `problem`; one that cannot be read only `error`.

    Every file is decoded in a process of its own kind that may crash or hang: the others are still looked at.
    Exit code 1: not one file could be read. The other methods are settings of recipes, too: `clips.shots`.

    Example: `pyramid shots --json holiday.mp4 trailer.mkv`
    """
    from pydantic import ValidationError

    from flows.cli.launch import BAD_INPUT, FAILURE, complain
    from pyramid_model.shots.shots import ShotsConfig
    from tasks.cutting.shot_lists import list_shots

    settings = {"method": method, "threshold": threshold, "weights": weights, "stride_frames": stride}
    try:
        config = ShotsConfig.model_validate(settings)
        found = dict(_watched(list_shots(files, config, timeout_s), len(files)))
    except ValidationError as err:
        for problem in err.errors():
            where = ".".join(map(str, problem["loc"]))
            complain(f"{where} {problem['input']!r}: {problem['msg']}" if where else problem["msg"])
        raise typer.Exit(BAD_INPUT) from None
    except ValueError as err:
        complain(str(err))
        raise typer.Exit(BAD_INPUT) from None
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(found)
    if all("error" in facts for facts in found.values()):
        raise typer.Exit(FAILURE)


def _watched(found: Any, num_files: int) -> Any:
    """The same, with a line on a terminal that says how far it is."""
    from rich.console import Console

    with Console(stderr=True).status(f"0 of {num_files} files") as status:
        for number, item in enumerate(found, 1):
            status.update(f"{number} of {num_files} files")
            yield item


def _print(found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from flows.cli.manifest_view import grid

    console = Console(highlight=False)
    rows = []
    for file, facts in found.items():
        if "error" not in facts:
            cuts = [str(cut) for cut in facts["cuts"]]
            listed = " ".join(cuts[:SHOWN_CUTS]) + (" …" if len(cuts) > SHOWN_CUTS else "")
            counts = [f"{facts['frames']:,}", f"{facts['fps']:.5g}", str(len(cuts) + 1)]
            rows.append([escape(file), *counts, listed, " ".join(f"{a}–{b}" for a, b in facts["gradual"])])
    if rows:
        names = ["file", "frames", "fps", "shots", "new shots at", "dissolves, fades"]
        console.print(grid(names, rows, right=("frames", "fps", "shots")))
    for file, facts in found.items():
        if text := facts.get("error") or facts.get("problem"):
            mark = "[red]error[/]" if "error" in facts else "[yellow]damaged[/]"
            console.print(f"{mark} {escape(file)}: {escape(text)}", soft_wrap=True)
