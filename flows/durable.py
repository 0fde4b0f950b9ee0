"""Shared by all flows: make steps Prefect tasks, resolve the recipe, send the log to Prefect."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from flows.alerts import watch_step
from flows.artifacts import publish_counts, publish_link
from flows.limits import has_server, is_cancelled, one_at_a_time
from flows.recipe import Recipe, RecipeError, load_recipe
from pyramid_model.config import Config
from tasks.running.errors import machine_lost
from tasks.running.jobs import stop_step
from tasks.running.run import PROGRESS, Run, Sparse, StepResult
from tasks.running.step import StepFunction
from tasks.tables.plain_text import visible
from tasks.tables.url_secrets import text_without_secrets

C = TypeVar("C", bound=Config)
R = TypeVar("R", bound=StepResult)
DEFAULT_RECIPE = "demo"
PROGRESS_EVERY_S = 10.0


def durable(step: StepFunction[C, R]) -> Task[[Run, C], R]:
    """A step as a Prefect task of the same name: publishes its counts, and is retried after a lost machine.

    Prefect caches and stores no result: a step reads from its tables what is done, so running it again is cheap.
    """

    @task(
        name=step.__name__,
        task_run_name=step.__name__,
        retries=2,
        retry_delay_seconds=30,
        retry_condition_fn=_failed_machine,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    @functools.wraps(step)
    def with_counts(run: Run, config: C) -> R:
        slot = one_at_a_time(step.__name__, run.root) if has_server() else contextlib.nullcontext()
        try:
            with slot, _links_published():
                result = step(run, config)
        except BaseException:
            # This process also ends when its worker ends or the server restarts; then the Ray job must continue.
            if run.ray.address.startswith("jobs:") and is_cancelled():
                stop_step(step.__name__, run, config)
            raise
        publish_counts(result)
        watch_step(run, result)
        return result

    return with_counts


@contextlib.contextmanager
def _links_published() -> Iterator[None]:
    """Publish the address of the page where the step can be watched as soon as a progress record has it."""
    handler = LinkPublisher()
    PROGRESS.addHandler(handler)
    try:
        yield
    finally:
        PROGRESS.removeHandler(handler)


class LinkPublisher(logging.Handler):
    """Publishes each link of the progress records of a step once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.published: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Publish the link of a record if it is new."""
        step, link = getattr(record, "step", ""), getattr(record, "link", "")
        if link and link not in self.published:
            self.published.add(link)
            try:
                publish_link(step, link)
            except Exception:  # the step must not fail because Prefect takes no artifact
                self.handleError(record)


def _failed_machine(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether a lost machine or connection caused the failure; after bad data or settings a retry would fail again."""
    err = state.result(raise_on_failure=False)
    return isinstance(err, BaseException) and machine_lost(err)


def prepare(
    root: str,
    recipe: Recipe | str,
    settings: Mapping[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
    source: str = "",
) -> tuple[Run, Recipe]:
    """Resolve the parameters of a flow, before it reserves resources or writes anything.

    Args:
        root: folder or URI of the tables and media.
        recipe: name, path, or the settings themselves.
        settings: overrides by dotted name.
        ray: override of `ray.address`.
        run_id: id of the run, which new rows record; a subflow gets that of its parent.
        source: override of `ingest.source`.

    Raises:
        RecipeError: the recipe or an override is wrong, or no root is set.
    """
    forward_logs()
    if not root:
        raise RecipeError("no root is given: set PYRAMID_ROOT before `prefect deploy`, or the parameter `root`")
    # prefect.yaml reads values from the environment; a variable that is not set gives "".
    parameters = {"ray.address": ray, "ingest.source": source}
    overrides = dict(settings or {}) | {name: value for name, value in parameters.items() if value}
    resolved = load_recipe(recipe or DEFAULT_RECIPE, overrides)
    names = {"run_id": run_id} if run_id else {}
    return Run(root=root, ray=resolved.ray, retry_failed=resolved.retry_failed, links=_links(), **names), resolved


def _links() -> dict[str, str]:
    """Id of this flow run, or of the flow that started it, and its address in the Prefect UI if a server is shared."""
    run_id = str(flow_run.root_flow_run_id)
    address = url_for("flow-run", obj_id=run_id) if has_server() else None
    return {"prefect_flow_run": run_id} | ({"prefect_url": address} if address else {})


def flow_run_name() -> str:
    """Flow, root and time, e.g. `curate pyramid-demo 2026-11-21 03:00:00`."""
    root = PurePosixPath(str(flow_run.parameters.get("root", ""))).name
    return f"{flow_run.flow_name} {root} {datetime.now():%Y-%m-%d %H:%M:%S}"


@functools.cache
def forward_logs() -> None:
    """Send the log of the steps (loggers `pyramid.*`) to their Prefect run as well as to the console."""
    handler = APILogHandler()
    handler.addFilter(_cleaned)
    handler.addFilter(Sparse(PROGRESS_EVERY_S))  # one line for each training step would fill the run's log
    logger = logging.getLogger("pyramid")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def _cleaned(record: logging.LogRecord) -> bool:
    """Log filter: passes every record, without control characters and secrets of URLs in its message."""
    record.msg, record.args = visible(text_without_secrets(record.getMessage())), ()
    return True
