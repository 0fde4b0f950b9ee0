"""`pyramid shots`: prints the shots of any videos, without a root."""

from typing import Annotated, Any

import typer

MAX_LISTED_CUTS = 12  # for each file in the table


def shots(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="videos: paths or URIs", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object that maps each FILE to its shots")
    ] = False,
    method: Annotated[
        str, typer.Option("--method", help="adaptive, content, histogram, threshold, transnetv2 or stride")
    ] = "adaptive",
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", help="threshold of the method; higher finds fewer cuts", show_default="of the method"
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", metavar="PATH", help="TransNetV2 weights", show_default="those in its package")
    ] = "",
    stride: Annotated[
        int, typer.Option("--stride", metavar="FRAMES", help="length of a shot with method stride")
    ] = 120,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="most time for one file")
    ] = 600,
) -> None:
    """Find the shots of FILEs; nothing is written.

    With --json each file has `cuts` (first frame of every new shot, counted from 0 in decoder output order), `gradual`
    (first and last frame of dissolves, fades and plain stretches), `fps` and `frames` (number of decoded frames). A
    damaged file also has `problem`; a file that cannot be read has only `error`.

    A child process decodes the files, so a crash or hang affects one file only. Exit code 1: no file could be read.
    Recipes have the same settings in `clips.shots`.

    Example: `pyramid shots --json holiday.mp4 trailer.mkv`
    """
    from pydantic import ValidationError

    from flows.cli.console import echo_json
    from flows.cli.launch import BAD_INPUT, FAILURE, complain
    from pyramid_model.shots.shots import ShotsConfig
    from tasks.cutting.shot_lists import list_shots

    settings = {"method": method, "threshold": threshold, "weights": weights, "stride_frames": stride}
    try:
        config = ShotsConfig.model_validate(settings)
        shots_by_file = dict(_with_status(list_shots(files, config, timeout_s), len(files)))
    except ValidationError as err:
        for problem in err.errors():
            where = ".".join(map(str, problem["loc"]))
            complain(f"{where} {problem['input']!r}: {problem['msg']}" if where else problem["msg"])
        raise typer.Exit(BAD_INPUT) from None
    except ValueError as err:
        complain(str(err))
        raise typer.Exit(BAD_INPUT) from None
    if as_json:
        echo_json(shots_by_file)
    else:
        _print(shots_by_file)
    if all("error" in facts for facts in shots_by_file.values()):
        raise typer.Exit(FAILURE)


def _with_status(results: Any, num_files: int) -> Any:
    """Yield each result unchanged; a status line on a terminal shows the number of files so far."""
    from flows.cli.console import PlainConsole

    with PlainConsole(stderr=True).status(f"0 of {num_files} files") as status:
        for number, item in enumerate(results, 1):
            status.update(f"{number} of {num_files} files")
            yield item


def _print(shots_by_file: dict[str, dict[str, Any]]) -> None:
    from flows.cli.console import PlainConsole, styled
    from flows.cli.manifest_view import grid

    console = PlainConsole()
    rows = []
    for file, facts in shots_by_file.items():
        if "error" not in facts:
            cuts = [str(cut) for cut in facts["cuts"]]
            listed = " ".join(cuts[:MAX_LISTED_CUTS]) + (" …" if len(cuts) > MAX_LISTED_CUTS else "")
            counts = [f"{facts['frames']:,}", f"{facts['fps']:.5g}", str(len(cuts) + 1)]
            rows.append([file, *counts, listed, " ".join(f"{a}–{b}" for a, b in facts["gradual"])])
    if rows:
        names = ["file", "frames", "fps", "shots", "new shots at", "dissolves, fades"]
        console.print(grid(names, rows, right=("frames", "fps", "shots")))
    for file, facts in shots_by_file.items():
        if text := facts.get("error") or facts.get("problem"):
            mark = ("error", "red") if "error" in facts else ("damaged", "yellow")
            console.print(styled(mark, f" {file}: {text}"), soft_wrap=True)
