"""The last words of a run: where the report and the clips are, and how to look at the runs."""

import os
import shlex

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from flows.cli.launch import elapsed, runner
from tasks import storage
from tasks.step import Run
from tasks.tables import read_table

MOST_CLIPS = 12


def print_summary(root: str, started: float) -> None:
    """Paths of the report and of the newest generated clips, commands for both UIs, total time."""
    run = Run(root=root)
    lines = Table.grid(padding=(0, 2))
    report = storage.join(run.root, "report.html")
    lines.add_row("Report", report if storage.exists(report) else "none was written")
    clips = generated_clips(run)
    for number, (uri, prompt) in enumerate(clips[:MOST_CLIPS]):
        lines.add_row("Clips" if number == 0 else "", f"{uri}\n  [dim]{prompt}[/]")
    if len(clips) > MOST_CLIPS:
        lines.add_row("", f"… and {len(clips) - MOST_CLIPS} more under {run.media('generated')}")
    lines.add_row("Prefect UI", prefect_command())
    lines.add_row("MLflow UI", mlflow_command(run.root))
    lines.add_row("Time", elapsed(started))
    Console(highlight=False).print(Panel(lines, title="Done", expand=False))


def generated_clips(run: Run) -> list[tuple[str, str]]:
    """(path, prompt) of the clips that exist, the newest first."""
    rows = read_table(run.root, "generations", ["uri", "prompt", "status", "created_at"])
    rows = rows.sort_by([("created_at", "descending")]).to_pylist()
    return [(row["uri"], row["prompt"]) for row in rows if row["status"] == "ok"]


def prefect_command() -> str:
    """How to see the runs: the server that was used, or the command that opens the temporary server's database."""
    server = os.environ.get("PREFECT_API_URL")
    if server:
        return server.removesuffix("/api")
    home = os.environ.get("PREFECT_HOME", "~/.prefect")
    return f"PREFECT_HOME={shlex.quote(home)} {runner()}prefect server start   (then http://127.0.0.1:4200)"


def mlflow_command(root: str) -> str:
    """How to see the training curves and the registry."""
    from tasks.registry import tracking_uri

    uri = tracking_uri(root)
    if uri.startswith("http"):
        return uri
    return f"{runner()}mlflow server --backend-store-uri {shlex.quote(uri)} --port 5000   (then http://127.0.0.1:5000)"
