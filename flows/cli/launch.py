"""Runs one flow for a command: checks settings first, shows live progress, prints one message for an error."""

import importlib
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flows.cli.console import PlainConsole, styled
from flows.cli.progress import Progress
from tasks.tables.plain_text import cut
from tasks.tables.url_secrets import from_environment, text_without_secrets

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from tasks.sources.ingest import IngestConfig

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130
USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError)
FULL_BYTES = 2**20
PREFECT_SETTINGS = ("logging.yml", "profiles.toml")  # files that Prefect reads in PREFECT_HOME
END_WITH = 'while kill -0 "$0"; do sleep 1; done; kill "$1"'  # waits for the end of process $0, then ends process $1
OUR_CODE = Path(__file__).parents[2]


def launch(flow: str, root: str, read_recipe: "Callable[[], Recipe]") -> Any:
    """Check the input, then run `flows.<flow>.<flow>` with live progress; returns its result.

    Args:
        flow: module and function name of the flow.
        root: folder or URI.
        read_recipe: returns the recipe with the settings of the command; its errors are reported like others.

    Raises:
        typer.Exit: with code 2 for bad input, 1 for a failure, 130 when interrupted; the message has been printed.
    """
    from tasks.running.run import Run
    from tasks.tables.storage import check_writable

    try:
        plan = read_recipe()
        root = Run(root=root).root
        check_writable(root)
        if flow in ("curate", "data_to_model"):
            _check_source(plan.ingest, root)
            _check_limits(plan, root)
        with Progress(PlainConsole()) as progress:
            progress.activity("starting Prefect")
            use_prefect(root)
            run_flow = getattr(importlib.import_module(f"flows.{flow}"), flow)
            return run_flow(root=root, recipe=plan)
    except KeyboardInterrupt:
        complain("interrupted; the same command continues from here")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as err:
        if not _is_user_error(err):
            if _disk_is_full(root):
                complain(f"the disk that holds {root} is full: free some space, then run the same command to continue")
            else:
                complain(f"{type(err).__name__}: {err}", traceback.format_exc())
            raise typer.Exit(FAILURE) from err
        complain(str(err))
        raise typer.Exit(BAD_INPUT if isinstance(err, USER_ERRORS) else FAILURE) from err


def _check_source(config: "IngestConfig", root: str) -> None:
    """Raise an error if a local source is missing or empty; the ingest step checks lists and remote sources."""
    from tasks.sources.listing import check_local_source
    from tasks.tables.storage import is_local

    source = from_environment(config.source)
    if is_local(source):
        check_local_source(source, root, config.left_out)


def _check_limits(plan: "Recipe", root: str) -> None:
    """Raise an error if the selection limits a score that no clip can have."""
    from tasks.running.run import Run
    from tasks.selecting.select import check_limited

    check_limited(Run(root=root), plan.select, plan.scores.computed)


def use_prefect(root: str) -> None:
    """Start Prefect's temporary server if no server is configured; must run before Prefect is first imported.

    The server's database is under the root, so that the history of runs stays with the root.

    Raises:
        ValueError: the root has settings of Prefect, which it may have brought from elsewhere.
    """
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # The log is sent to the Prefect run; the console shows our progress instead.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if not os.environ.get("PREFECT_API_URL") and "://" not in root and "PREFECT_HOME" not in os.environ:
        home = Path(root) / "prefect"
        _refuse_settings(home)
        os.environ["PREFECT_HOME"] = str(home)
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        _start_server()


def _refuse_settings(home: Path) -> None:
    """Raise ValueError if Prefect would read settings under the root: `logging.yml` may name code that it then runs."""
    for name in PREFECT_SETTINGS:
        if os.path.lexists(home / name):
            raise ValueError(
                f"{home / name} holds settings of Prefect, which may run code, and no command of ours writes it: "
                "delete it, or set PREFECT_HOME to a folder of your own"
            )


def _start_server() -> None:
    """Start the temporary server, and a shell process that ends it when this process ends, even if killed."""
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    server.start()
    assert server.server_process is not None
    subprocess.Popen(
        ["sh", "-c", END_WITH, str(os.getpid()), str(server.server_process.pid)],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def complain(message: str, trace: str = "") -> None:
    """Print an error on standard error, below the traceback of a bug; all commands print errors with this function."""
    console = PlainConsole(stderr=True, soft_wrap=True)
    if trace:
        console.print(text_without_secrets(trace))
    console.print(styled(("error:", "red"), f" {cut(text_without_secrets(message))}"))


def _disk_is_full(root: str) -> bool:
    """Whether the disk of the root is full. Prefect's database is there too, and its error does not name the cause."""
    nearest = next((path for path in (Path(root), *Path(root).parents) if path.exists()), None)
    return "://" not in root and nearest is not None and shutil.disk_usage(nearest).free < FULL_BYTES


def _is_user_error(err: Exception) -> bool:
    """Whether our code raised the error for the user, so that the message is enough; other errors are bugs."""
    raised_in = traceback.extract_tb(err.__traceback__)[-1].filename
    ours = any(Path(raised_in).is_relative_to(OUR_CODE / layer) for layer in ("flows", "tasks", "pyramid_model"))
    return ours and isinstance(err, (*USER_ERRORS, RuntimeError))


def runner() -> str:
    """Prefix of a command that is printed for users to copy."""
    return "uv run " if "UV_RUN_RECURSION_DEPTH" in os.environ else ""


def elapsed(started: float) -> str:
    """Seconds since `started` (time.monotonic) as `3 min 05 s`."""
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
