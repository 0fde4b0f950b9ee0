"""The command `pyramid`. Large packages are imported only when a command runs, so `--help` is fast."""

import typer

from flows.cli import features, flow_commands, manifest, run_commands, weights
from flows.cli.alerts import alerts
from flows.cli.doctor import doctor
from flows.cli.parity import parity
from flows.cli.shots import shots

app = typer.Typer(
    name="pyramid",
    help="Turns your own raw videos into your own video model: curation, features, training, generation.\n\n"
    "Start with `pyramid demo`; it needs no GPU, no server and no download.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run_commands.mount(app)
flow_commands.mount(app)
app.command("doctor", rich_help_panel="Look at what is there")(doctor)
app.command("alerts", rich_help_panel="Operate a cluster")(alerts)
app.command("shots", rich_help_panel="Look at what is there")(shots)
app.command("parity", rich_help_panel="Look at what is there")(parity)
app.add_typer(manifest.app, name="manifest", rich_help_panel="Look at what is there")
app.add_typer(weights.app, name="weights", rich_help_panel="Look at what is there")
app.add_typer(features.app, name="features", rich_help_panel="Look at what is there")
