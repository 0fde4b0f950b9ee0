"""MLflow's tracking store: where it is, and the curve, parameters and links of each training.

The store is `MLFLOW_TRACKING_URI` when that is set, else an SQLite file under `<root>/mlflow`. MLflow takes seconds to
import, so this module imports it only in functions.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pyramid_model.train.checkpoint_names import checkpoint_name
from tasks.models.hub import once_a_node
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.content_ids import content_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

VALUES_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # limits of MLflow
PARAM_LENGTH = 500
LAST_STEP, LAST_SEEN, LINKS = "logged_step", "logged_at", "mlflow.note.content"  # tags; MLflow's page shows the last


class RegistryError(RuntimeError):
    """The registry cannot do what was asked: no passing evaluation, or no tracking store."""


def tracking_uri(root: str) -> str:
    """URI of the tracking store, as `mlflow ui --backend-store-uri` takes it.

    Raises:
        RegistryError: the root is not a local folder, and MLFLOW_TRACKING_URI is not set.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not storage.is_local(root):
        raise RegistryError(f"root {root!r} is not a local folder: set MLFLOW_TRACKING_URI to an MLflow server")
    return f"sqlite:///{root}/mlflow/mlflow.db"


def check_tracking(root: str) -> None:
    """Check the tracking store before training.

    An SQLite file is not checked, since the import of MLflow takes seconds.

    Raises:
        RegistryError: no tracking store is set, or its server does not answer.
    """
    uri = tracking_uri(root)
    if uri.startswith("sqlite:///"):
        return
    mlflow = client(root)
    from mlflow.exceptions import MlflowException

    try:
        mlflow.search_experiments(max_results=1)
    except MlflowException as err:
        raise RegistryError(
            f"the MLflow server {uri} does not answer as it should: {err}. Start it, or set MLFLOW_TRACKING_URI, "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where steps run."
        ) from err


def of_root(name: str, root: str) -> str:
    """A name in MLflow that no other root has, since one server may serve many: `name-folder-hash`."""
    folder = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePosixPath(root).name)
    return f"{name}-{folder}-{content_id(root)[:8]}"


def client(root: str) -> "MlflowClient":
    """An MlflowClient for the tracking store; creates the store if it does not exist. No telemetry, only warnings."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "true")
    # Give up on a server that does not answer after two minutes; MLflow's own defaults take up to a quarter of an hour.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = tracking_uri(root)
    if not uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    with once_a_node(str(file)):  # MLflow creates the tables on first use; two processes that do so at once fail
        mlflow = MlflowClient(tracking_uri=uri, registry_uri=uri)
        mlflow.search_experiments(max_results=1)
        mlflow.search_registered_models(max_results=1)
    return mlflow


def experiment_id(mlflow: "MlflowClient", root: str, name: str) -> str:
    """Id of the experiment of that name; creates it if it does not exist.

    Raises:
        RegistryError: MLflow did not create it.
    """
    from mlflow.exceptions import MlflowException

    own_files = "MLFLOW_TRACKING_URI" not in os.environ
    if mlflow.get_experiment_by_name(name) is None:
        with contextlib.suppress(MlflowException):  # usually another process created it just now
            mlflow.create_experiment(name, f"{root}/mlflow/artifacts/{name}" if own_files else None)
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        raise RegistryError(f"MLflow at {tracking_uri(root)} did not create the experiment {name!r}")
    return experiment.experiment_id


def run_url(root: str, run_id: str) -> str:
    """Address of an MLflow run in the web interface of the tracking server; empty if the store is no server."""
    uri = tracking_uri(root)
    return f"{uri.rstrip('/')}/#/runs/{run_id}" if uri.startswith("http") else ""


class TrainingLog:
    """The MLflow run of one training. It is found again by model id, so a resumed training goes on with its curve.

    Its status is RUNNING while the training runs, then FINISHED, FAILED or KILLED. If the process gets SIGKILL, the
    next training of the root sets the status (`_end_silent_runs`).
    """

    def __init__(self, run: Run, kind: str, model_id: str, params: Mapping[str, object]):
        self.client = client(run.root)
        self.silence_s = run.ray.no_progress_timeout_s
        self.experiment = experiment_id(self.client, run.root, of_root(f"train-{kind}", run.root))
        runs = self.client.search_runs([self.experiment], f"tags.model_id = '{model_id}'", max_results=1)
        mlflow_run = runs[0] if runs else self._start(kind, model_id, params)
        self.run_id: str = mlflow_run.info.run_id
        self.last_step = int(mlflow_run.data.tags.get(LAST_STEP, -1))
        if mlflow_run.info.status not in ("RUNNING", "FINISHED"):
            self.client.update_run(self.run_id, "RUNNING")
        self._set_tags({"root": run.root, "run_id": run.run_id, **run.links, LINKS: _links_note(run)})
        self._end_silent_runs()

    def _start(self, kind: str, model_id: str, params: Mapping[str, object]) -> "MlflowRun":
        from mlflow.entities import Param

        run = self.client.create_run(
            self.experiment, run_name=f"{kind}-{model_id[:8]}", tags={"model_id": model_id, "kind": kind}
        )
        flat = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in flattened(params)]
        for start in range(0, len(flat), PARAMS_PER_BATCH):
            self.client.log_batch(run.info.run_id, params=flat[start : start + PARAMS_PER_BATCH])
        return run

    def _end_silent_runs(self) -> None:
        """Set runs of killed trainings to KILLED: RUNNING, but silent for longer than a live training may be."""
        for run in self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'"):
            seen = float(run.data.tags.get(LAST_SEEN, run.info.start_time / 1000))
            if run.info.run_id != self.run_id and time.time() - seen > self.silence_s:
                self.client.set_terminated(run.info.run_id, "KILLED")

    def add(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log rows of the curve, {"step": …, name: value}, except steps that are logged already."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [row for row in rows if row["step"] > self.last_step]
        values = [
            Metric(name, float(value), now, int(row["step"]))
            for row in new
            for name, value in row.items()
            if name != "step"
        ]
        for start in range(0, len(values), VALUES_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=values[start : start + VALUES_PER_BATCH])
        if new:
            self.last_step = max(int(row["step"]) for row in new)
            self._set_tags({LAST_STEP: self.last_step})

    def add_checkpoint(self, step: int, uri: str, figures: Mapping[str, object]) -> None:
        """Record a kept checkpoint as a LoggedModel of the run, with its figures as parameters; once for each step."""
        name = checkpoint_name(step)
        models = self.client.search_logged_models([self.experiment], filter_string=f"source_run_id = '{self.run_id}'")
        if any(model.name == name for model in models):
            return
        params = {key: str(value)[:PARAM_LENGTH] for key, value in figures.items()}
        source = {"name": name, "source_run_id": self.run_id, "model_type": "checkpoint"}
        model = self.client.create_logged_model(self.experiment, **source, tags={"uri": uri}, params=params)
        self.client.finalize_logged_model(model.model_id, "READY")

    def finish(self, results: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Record results that are not part of the curve as tags, mark the run finished and return its id."""
        last_values = self.client.get_run(self.run_id).data.metrics
        counts = {f"result.{name}": value for name, value in results.items() if name not in last_values}
        self._set_tags(counts | dict(tags))
        self.end("FINISHED")
        return self.run_id

    def end(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED, or KILLED for a training that was stopped."""
        self.client.set_terminated(self.run_id, status)

    def _set_tags(self, tags: Mapping[str, object]) -> None:
        from mlflow.entities import RunTag

        stamped = {**tags, LAST_SEEN: f"{time.time():.0f}"}
        self.client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in stamped.items()])


def _links_note(run: Run) -> str:
    """Markdown for the description of the MLflow run: where the training came from."""
    lines = [f"root `{run.root}`", f"run `{run.run_id}`"]
    lines += [f"{name.replace('_', ' ')}: {target}" for name, target in run.links.items()]
    return "  \n".join(lines)


def flattened(config: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    """Yield a nested config as dotted names and values, for MLflow's parameter table."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
