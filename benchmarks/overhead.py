"""Orchestration overhead of the demo: its wall time minus the time in actor calls and training, by item.

    uv run python benchmarks/overhead.py                       # the demo in a new folder, a second run, then --help
    uv run python benchmarks/overhead.py --read pyramid-demo   # only the table, from a demo that was run before

The figures come from `<root>/runs/<run_id>/*.json`, which every step writes; the wall times are measured here.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks.running.run import StepResult

PYRAMID = Path(sys.executable).with_name("pyramid")
HELP_RUNS = 5
OVERHEAD_LIMIT, RERUN_LIMIT_S, HELP_LIMIT_S = 0.35, 30.0, 1.5


def timed(*arguments: str) -> float:
    """Wall seconds of a `pyramid` command; stops with its output if it fails."""
    started = time.monotonic()
    done = subprocess.run([PYRAMID, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pyramid {' '.join(arguments)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return time.monotonic() - started


def runs(root: Path) -> list[list[tuple[float, StepResult]]]:
    """Runs of a root, oldest first; each is a list of (start in epoch seconds, result) of its steps by time."""
    results = []
    for folder in sorted((root / "runs").iterdir()):
        files = sorted(folder.glob("*.json"))
        results.append(
            [(int(f.name.split("-")[0]) / 1000, StepResult.model_validate_json(f.read_text())) for f in files]
        )
    return [run for run in results if run]


def step_table(run: list[tuple[float, StepResult]]) -> tuple[Table, Counter[str]]:
    """Table with one line for each step, and the sums of its columns by name."""
    names = list(dict.fromkeys(name for _, result in run for name in result.timings))
    columns = ["wall", "busy", *names, "rest"]
    table = Table("step", *(name.removesuffix("_s").replace("_", " ") for name in columns), title="seconds by step")
    for column in table.columns[1:]:
        column.justify = "right"
    sums: Counter[str] = Counter()
    for _, result in run:
        parts = {"wall": result.wall_s, "busy": result.busy_s, **result.timings}
        parts["rest"] = result.wall_s - result.busy_s - sum(result.timings.values())
        sums.update(parts)
        table.add_row(result.step, *(f"{parts[name]:.1f}" if name in parts else "" for name in columns))
    table.add_section()
    table.add_row("all steps", *(f"{sums[name]:.1f}" for name in columns))
    return table, sums


def overhead_table(wall_s: float, sums: Counter[str]) -> Table:
    """Table of the time outside actor calls and training, by item."""
    table = Table("item", "seconds", "share of wall", title="overhead")
    items = {name: seconds for name, seconds in sums.items() if name not in ("wall", "busy", "rest")}
    items["rest of the steps: reading tables, committing, MLflow"] = sums["rest"]
    items["between steps: imports, Prefect's server, flow engine, artifacts"] = wall_s - sums["wall"]
    for name, seconds in items.items():
        table.add_row(name, f"{seconds:.1f}", f"{seconds / wall_s:.1%}")
    table.add_section()
    overhead = wall_s - sums["busy"]
    table.add_row("overhead", f"{overhead:.1f}", f"{overhead / wall_s:.1%}")
    table.add_row("busy: actor calls and training", f"{sums['busy']:.1f}", f"{sums['busy'] / wall_s:.1%}")
    table.add_row("wall", f"{wall_s:.1f}", "")
    return table


def verdict(console: Console, name: str, value: float, limit: float, figure: str, limit_shown: str) -> None:
    """Line with a figure, its limit, and whether it is met."""
    reached = "reached" if value <= limit else "[red]not reached[/]"
    console.print(f"{name}: {figure}; at most {limit_shown}: {reached}", highlight=False)


def measure(console: Console, root: Path, again: bool) -> None:
    """Run the demo in an empty folder, show its tables, and run it again."""
    wall_s = timed("demo", "--root", str(root))
    show(console, runs(root)[-1], wall_s)
    if again:
        rerun_s = timed("demo", "--root", str(root))
        new = sum(result.num_new for _, result in runs(root)[-1])
        figure = f"{rerun_s:.1f} s, {new} new rows"
        verdict(console, "the same again", rerun_s, RERUN_LIMIT_S, figure, f"{RERUN_LIMIT_S:g} s")


def show(console: Console, run: list[tuple[float, StepResult]], wall_s: float) -> None:
    """Print both tables of one run and compare the overhead with its target."""
    steps, sums = step_table(run)
    console.print(steps, overhead_table(wall_s, sums))
    share = 1 - sums["busy"] / wall_s
    verdict(console, "overhead", share, OVERHEAD_LIMIT, f"{share:.1%}", f"{OVERHEAD_LIMIT:.0%}")


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, metavar="ROOT", help="do not run the demo, read this root")
    parser.add_argument("--skip-rerun", action="store_true", help="do not run the demo a second time")
    parser.add_argument("--skip-help", action="store_true", help="do not time `pyramid --help`")
    options = parser.parse_args()
    console = Console(width=140 if not sys.stdout.isatty() else None)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {load}, Python {platform.python_version()}\n")
    if options.read:
        # The first run that did work; the time before its first step and after its last step is not recorded.
        run = max(runs(options.read), key=lambda steps: sum(result.num_new for _, result in steps))
        console.print("wall: from the start of the first step to the end of the last one")
        show(console, run, run[-1][0] + run[-1][1].wall_s - run[0][0])
    else:
        with tempfile.TemporaryDirectory(prefix="pyramid-overhead-") as folder:
            measure(console, Path(folder) / "demo", again=not options.skip_rerun)
    if not options.skip_help:
        seconds = [timed("--help") for _ in range(HELP_RUNS)]
        median = statistics.median(seconds)
        figure = f"{median:.2f} s (median of {HELP_RUNS}, {min(seconds):.2f} to {max(seconds):.2f})"
        verdict(console, "pyramid --help", median, HELP_LIMIT_S, figure, f"{HELP_LIMIT_S:g} s")


if __name__ == "__main__":
    main()
