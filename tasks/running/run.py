"""A run (root, Ray, run id), the result of a step, the lineage of rows, and progress messages."""

import functools
import logging
import math
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from pydantic import Field, field_validator

from pyramid_model.config import Config, identity
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage

PROGRESS = logging.getLogger("pyramid.progress")
PROGRESS_FIELDS = {"step": str, "done": int, "total": int, "detail": str, "link": str}  # of a progress record
STEPS = logging.getLogger("pyramid.steps")


class RayConfig(Config):
    """The Ray cluster for per-clip work and training."""

    address: str = Field(
        default="local",
        description="Ray cluster: local (embedded), auto, ray://host:10001, or jobs:http://host:8265 (Ray jobs)",
    )
    num_cpus: int | None = Field(
        default=None, ge=1, description="CPUs of an embedded Ray; null: all CPUs of this machine"
    )
    no_progress_timeout_s: float = Field(
        default=1800, gt=0, description="a step stops if no block finishes within this time"
    )

    @field_validator("address")
    @classmethod
    def _known_address(cls, address: str) -> str:
        if address in ("local", "auto") or address.startswith(("ray://", "jobs:http://", "jobs:https://")):
            return address
        raise ValueError(
            f"{address!r} is not a Ray address: use local, auto, ray://host:10001 or jobs:http://host:8265 "
            "(ray.address)"
        )


class Run(Config):
    """Root and Ray cluster of a run. No field changes what a step computes."""

    root: str = Field(description="absolute folder or fsspec URI that holds tables/, media/, models/ and runs/")
    ray: RayConfig = RayConfig()
    run_id: str = Field(
        default_factory=lambda: time.strftime("%Y%m%dT%H%M%S"), description="id of the run, which new rows record"
    )
    retry_failed: bool = Field(default=False, description="try failed rows again (appends a row with the next attempt)")
    links: dict[str, str] = Field(
        default={},
        description="ids and addresses of this run elsewhere: prefect_flow_run, prefect_url, ray_job, ray_url",
    )

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str) -> str:
        return storage.absolute_root(root)

    def media(self, *parts: str) -> str:
        """URI of a media file, e.g. `run.media("clips", clip_id + ".mp4")`."""
        return storage.join(self.root, "media", *parts)

    def models(self, *parts: str) -> str:
        """URI of a model folder or of a file in one."""
        return storage.join(self.root, "models", *parts)


class StepResult(Config):
    """Counts, rows and times of a step: num_in = num_done + num_ok + num_failed + num_skipped.

    A step whose outputs later steps read returns a subclass with fields for them.
    """

    step: str
    num_in: int = 0
    num_done: int = Field(default=0, description="already committed by an earlier run")
    num_ok: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    rows: dict[str, int] = Field(default={}, description="rows appended, by table")
    versions: dict[str, int] = Field(default={}, description="table versions after the step")
    errors: dict[str, int] = Field(default={}, description="failed and skipped rows by error_type")
    note: str = Field(default="", description="short summary for people")
    wall_s: float = 0.0
    busy_s: float = Field(default=0.0, description="time during which at least one actor or trainer was working")
    timings: dict[str, float] = Field(default={}, description="seconds of other work, by name")
    links: dict[str, str] = Field(
        default={}, description="as in `Run.links`; of trainings also mlflow_run and mlflow_url"
    )

    @property
    def num_new(self) -> int:
        """Number of inputs that this call computed."""
        return self.num_ok + self.num_failed + self.num_skipped


def merged(results: Sequence[StepResult], note: str = "") -> StepResult:
    """Sum of several results of one step. note: of the sum; empty: "nothing new" if no result has new rows."""
    totals = {
        name: sum(getattr(result, name) for result in results)
        for name in ("num_in", "num_done", "num_ok", "num_failed", "num_skipped", "wall_s", "busy_s")
    }
    return StepResult(
        step=results[-1].step,
        **totals,
        rows=added(result.rows for result in results),
        versions={table: version for result in results for table, version in result.versions.items()},
        errors=added(result.errors for result in results),
        timings=added(result.timings for result in results),
        links={name: target for result in results for name, target in result.links.items()},
        note=note or ("" if any(result.num_new for result in results) else "nothing new"),
    )


N = TypeVar("N", int, float)


def added(tallies: Iterable[Mapping[str, N]]) -> dict[str, N]:
    """Sums of numbers by name."""
    total: dict[str, N] = {}
    for tally in tallies:
        for name, value in tally.items():
            total[name] = total.get(name, 0) + value
    return total


def params_hash(config: Config) -> str:
    """Hash of the settings that change the results of a step (`pyramid_model.config.identity`)."""
    return content_id(identity(config))


@functools.cache
def code_version() -> str:
    """Version of this package, with the git commit of its checkout, or of its image (PYRAMID_COMMIT)."""
    try:
        package = version("pyramid-pipeline")
    except PackageNotFoundError:
        package = "unknown"
    checkout = Path(__file__).parents[2]
    if commit := os.environ.get("PYRAMID_COMMIT", ""):
        return f"{package}+{commit[:12]}"
    if not (checkout / ".git").exists():
        return package
    git = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return f"{package}+{git.stdout.strip()}" if git.returncode == 0 else package


def lineage(run: Run, step: str, step_version: str, config: Config) -> Lineage:
    """The lineage columns of rows that a step appends."""
    return Lineage(run.run_id, step, step_version, params_hash(config), code_version())


def report_progress(step: str, done: int, total: int, unit: str = "", detail: str = "", link: str = "") -> None:
    """Log how far a step is, for the live line of the CLI and the log of Prefect.

    Args:
        step: name.
        done, total: counts.
        unit: of the counts.
        detail: further figures.
        link: address of a page where the step can be watched; empty if there is none.
    """
    counts = {"step": step, "done": done, "total": total, "detail": detail, "link": link}
    PROGRESS.info("%s %d/%d %s", step, done, total, f"{unit}, {detail}" if detail else unit, extra=counts)


class Sparse(logging.Filter):
    """Log filter: passes progress records of a step every `every_s` seconds and at its end, and all other records."""

    def __init__(self, every_s: float) -> None:
        super().__init__()
        self.every_s = every_s
        self.last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.name != PROGRESS.name:
            return True
        step, now = getattr(record, "step", ""), time.monotonic()
        at_end = getattr(record, "done", 0) >= getattr(record, "total", math.inf)
        if not at_end and now - self.last.get(step, -math.inf) < self.every_s:
            return False
        self.last[step] = now
        return True
