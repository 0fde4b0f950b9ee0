"""`pyramid alerts`: sets up messages about failed runs, late runs and many failed rows on a Prefect server."""

import os
from typing import Annotated

import typer

from flows.cli.console import echo


def alerts(
    webhook: Annotated[
        str, typer.Option("--webhook", help='URL that gets {"text": …}: Slack, Mattermost, Google Chat, your own.')
    ] = "",
    block: Annotated[
        str,
        typer.Option("--block", metavar="TYPE/NAME", help="Prefect block in place of a URL, e.g. slack-webhook/ops."),
    ] = "",
    max_failed_share: Annotated[
        float,
        typer.Option(
            "--max-failed-share", min=0, max=1, help="Send a message if a larger share of a step's new rows fails."
        ),
    ] = 0.1,
    min_free_share: Annotated[
        float,
        typer.Option(
            "--min-free-share", min=0, max=1, help="Send a message if a smaller share of the root's disk is free."
        ),
    ] = 0.1,
    silence_s: Annotated[
        int,
        typer.Option("--silence", min=60, help="Seconds without a heartbeat (one every 30 s) until a run is Crashed."),
    ] = 600,
) -> None:
    """Create or update automations on the Prefect server of PREFECT_API_URL.

    Runs whose process has ended become Crashed. With a webhook or a block, messages are sent about failed, crashed and
    late runs, many failed rows, a model that the gate refused, and a disk that is nearly full.

    Example: `pyramid alerts --webhook https://hooks.example.com/services/T000/B000/XXXX`
    """
    from flows.cli.launch import BAD_INPUT, complain

    if not os.environ.get("PREFECT_API_URL"):
        complain("automations need a Prefect server: set PREFECT_API_URL, e.g. http://prefect.example:4200/api")
        raise typer.Exit(BAD_INPUT)
    from flows.alerts import set_up_alerts

    try:
        names = set_up_alerts(webhook, block, max_failed_share, min_free_share, silence_s)
    except ValueError as err:
        complain(str(err))
        raise typer.Exit(BAD_INPUT) from err
    for name in names:
        echo(name)
