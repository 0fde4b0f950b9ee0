"""Run one flow for a command: settings checked first, live progress, one clear message when something is wrong."""

import importlib
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from flows.cli.progress import Progress

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from tasks.sources.ingest import IngestConfig

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130
USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError)
FULL_BYTES = 2**20
END_WITH = 'while kill -0 "$0"; do sleep 1; done; kill "$1"'  # $0: the process to outlive; $1: the one to end
OUR_CODE = Path(__file__).parents[2]


def launch(
    flow: str,
    root: str,
    recipe: str,
    settings: Sequence[str] | None,
    overrides: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Check everything that can be checked, then run `flows.<flow>.<flow>` with live progress; returns its result.

    Args:
        flow: module and function name of the flow.
        root: folder or URI.
        recipe: name or path.
        settings: `section.key=value` pairs of --set.
        overrides: of the recipe by dotted name; --set comes before them.
        options: command-line options that stand for a setting, dots written as `__`; None and "" are not given.

    Raises:
        typer.Exit: with code 2 for bad input, 1 for a failure, 130 when interrupted; the message has been printed.
    """
    from flows.recipe import parse_settings

    try:
        if flow == "curate":
            _refuse_sample(recipe, settings, options)
        plan, root = _checked(root, recipe, dict(overrides or {}) | parse_settings(settings or ()), options)
        if flow in ("curate", "data_to_model"):
            _check_source(plan.ingest, root)
            _check_limits(plan, root)
        with Progress(Console(highlight=False)) as progress:
            progress.waiting("starting Prefect")
            use_prefect(root)
            run_flow = getattr(importlib.import_module(f"flows.{flow}"), flow)
            return run_flow(root=root, recipe=plan)
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as err:
        if not _meant_for_people(err):
            if _disk_is_full(root):
                complain(
                    f"the disk that holds {root} is full: free some space, then the same command goes on from here"
                )
            else:
                traceback.print_exc()
                complain(f"{type(err).__name__}: {err}")
            raise typer.Exit(FAILURE) from err
        complain(str(err))
        raise typer.Exit(BAD_INPUT if isinstance(err, USER_ERRORS) else FAILURE) from err


def _checked(root: str, recipe: str, settings: Mapping[str, Any], options: dict[str, Any]) -> "tuple[Recipe, str]":
    """The recipe and the absolute root, after all checks that need no work: keys, types, a writable root."""
    from flows.recipe import load_recipe
    from tasks.running.run import Run
    from tasks.tables.storage import check_writable

    given = {name.replace("__", "."): value for name, value in options.items() if value not in (None, "", False)}
    plan = load_recipe(recipe, dict(settings) | given)
    root = Run(root=root).root
    check_writable(root)
    return plan, root


def _refuse_sample(recipe: str, settings: Sequence[str] | None, options: dict[str, Any]) -> None:
    """Refuse to curate the sample videos of a recipe that comes with the package into a root that is your own."""
    from flows.recipe import parse_settings, recipe_names

    named = options.get("ingest__source") or {"ingest", "ingest.source"} & set(parse_settings(settings or ()))
    if recipe in recipe_names() and not named:
        raise ValueError(
            "no videos are named: give --source FOLDER, or a recipe file of your own with `ingest.source`. "
            "The sample videos belong to `pyramid demo` and `pyramid run demo`"
        )


def _check_source(config: "IngestConfig", root: str) -> None:
    """Refuse a source that is missing or empty before anything starts; a remote one is left to the ingest step."""
    from tasks.sources.listing import source_files
    from tasks.tables.storage import is_local

    if is_local(config.source):
        source_files(config.source, root, config.left_out, config.media_root, config.fetch)


def _check_limits(plan: "Recipe", root: str) -> None:
    """Refuse limits on scores that no clip can have before anything starts."""
    from tasks.running.run import Run
    from tasks.selecting.select import check_limited

    check_limited(Run(root=root), plan.select, plan.scores.computed)


def use_prefect(root: str) -> None:
    """Prefect's own temporary server, if no server is configured; must come before Prefect's first import.

    Its database goes under the root, so that the runs can be looked at later from there.
    """
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # The log goes to the run; the console shows our progress instead.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if not os.environ.get("PREFECT_API_URL") and "://" not in root:
        os.environ.setdefault("PREFECT_HOME", str(Path(root) / "prefect"))
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        _start_server()


def _start_server() -> None:
    """Start the temporary server and a shell that ends it after this process, which may be killed outright."""
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


def complain(message: str) -> None:
    """One error on standard error; every command that refuses something says it through here."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[red]error:[/] ", end="")
    console.print(message, markup=False)


def _disk_is_full(root: str) -> bool:
    """Whether that is why something failed: Prefect's own database lies there too, and its error says nothing of it."""
    nearest = next((path for path in (Path(root), *Path(root).parents) if path.exists()), None)
    return "://" not in root and nearest is not None and shutil.disk_usage(nearest).free < FULL_BYTES


def _meant_for_people(err: Exception) -> bool:
    """Whether our code raised it on purpose, so that its message is enough; anything else is a bug."""
    raised_in = traceback.extract_tb(err.__traceback__)[-1].filename
    ours = any(Path(raised_in).is_relative_to(OUR_CODE / layer) for layer in ("flows", "tasks", "pyramid_model"))
    return ours and isinstance(err, (*USER_ERRORS, RuntimeError))


def runner() -> str:
    """What to put before a command that is printed for people to copy."""
    return "uv run " if "UV_RUN_RECURSION_DEPTH" in os.environ else ""


def elapsed(started: float) -> str:
    """Seconds since `started` (time.monotonic) as `3 min 05 s`."""
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
