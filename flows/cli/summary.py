"""Summary at the end of a run: paths of report and clips, and commands that show the runs."""

import os
import shlex

import pyarrow.compute as pc

from flows.cli.console import PlainConsole, styled
from flows.cli.launch import elapsed, runner
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.delta import read_table
from tasks.tables.newest import ORDER, newest_first

MOST_CLIPS = 12


def print_summary(root: str, started: float) -> None:
    """Print paths of the report and of the newest generated clips, commands for both UIs, and total time."""
    run = Run(root=root)
    # Users copy paths and commands, so they are never cut or wrapped.
    console = PlainConsole(soft_wrap=True)
    console.print(styled("\n", ("Done", "bold"), f" in {elapsed(started)}."))
    report = storage.join(run.root, "report.html")
    if storage.exists(report):
        console.print(styled(("Report", "bold"), f"      {report}"))
    clips = generated_clips(run)
    for number, (uri, prompt) in enumerate(clips[:MOST_CLIPS]):
        heading = ("Clips" if number == 0 else "     ", "bold")
        console.print(styled(heading, f"       {uri}  ", (prompt, "dim")))
    if len(clips) > MOST_CLIPS:
        console.print(f"            and {len(clips) - MOST_CLIPS} more in {run.media('generated')}")
    console.print(styled(("Prefect UI", "bold"), f"  {prefect_command()}"))
    console.print(styled(("MLflow UI", "bold"), f"   {mlflow_command(run.root)}"))


def generated_clips(run: Run) -> list[tuple[str, str]]:
    """(path, prompt) of generated clips, the newest first."""
    rows = read_table(run.root, "generations", ["uri", "prompt", *ORDER], where=pc.field("status") == "ok")
    return [(row["uri"], row["prompt"]) for row in newest_first(rows).to_pylist()]


def prefect_command() -> str:
    """Address of the configured Prefect server, or a command that opens the temporary server's database."""
    server = os.environ.get("PREFECT_API_URL")
    if server:
        return server.removesuffix("/api")
    home = os.environ.get("PREFECT_HOME", "~/.prefect")
    return f"PREFECT_HOME={shlex.quote(home)} {runner()}prefect server start  # then http://127.0.0.1:4200"


def mlflow_command(root: str) -> str:
    """Address of the MLflow server, or a command that starts one on the root's training curves and registry."""
    from tasks.models.tracking import tracking_uri

    uri = tracking_uri(root)
    if uri.startswith("http"):
        return uri
    return f"{runner()}mlflow server --backend-store-uri {shlex.quote(uri)} --port 5000  # then http://127.0.0.1:5000"
