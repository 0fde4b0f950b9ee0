"""MLflow: curves and parameters of every training, registered models, and which one is champion.

The tracking store is `MLFLOW_TRACKING_URI` when that is set, else an SQLite file under `<root>/mlflow`. MLflow takes
seconds to import, so `champion` reads a small pointer file, as long as the SQLite file has not changed since that was
written. Moving the alias by hand changes the SQLite file, so the pointer is then ignored.
"""

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pyramid_model.weights.record import ModelFolder
from tasks.models.folders import ModelSet
from tasks.models.gate import Check, failures
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.delta import content_id, read_table

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException

ALIAS = "champion"
VALUES_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # limits of MLflow
PARAM_LENGTH = 500


class RegistryError(RuntimeError):
    """The registry cannot do what was asked: no passing evaluation, or no tracking store."""


class Champion(ModelSet):
    """The models that generate. model_id: of the DiT, if it was trained here."""

    model_id: str
    evaluation_id: str
    version: str = ""  # of the registered model

    @classmethod
    def of(cls, models: ModelSet, model_id: str, evaluation_id: str, version: str = "") -> "Champion":
        """Models that passed an evaluation."""
        parts = {"dit": models.dit, "vae": models.vae, "encoder": models.encoder}
        return cls(**parts, model_id=model_id, evaluation_id=evaluation_id, version=version)


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


def model_name(root: str) -> str:
    """The registered model of a root, which has one champion."""
    return of_root("pyramid-dit", root)


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
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


class TrainingLog:
    """The MLflow run of one training. It is found again by model id, so a resumed training goes on with its curve."""

    def __init__(self, root: str, kind: str, model_id: str, params: Mapping[str, object]):
        self.client = client(root)
        experiment = self._experiment(root, of_root(f"train-{kind}", root))
        runs = self.client.search_runs([experiment], f"tags.model_id = '{model_id}'", max_results=1)
        run = runs[0] if runs else self._start(experiment, kind, model_id, params)
        self.run_id: str = run.info.run_id
        self.last_step = int(float(run.data.metrics.get("logged_step", -1)))

    def _experiment(self, root: str, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        own_files = "MLFLOW_TRACKING_URI" not in os.environ
        return self.client.create_experiment(name, f"{root}/mlflow/artifacts/{name}" if own_files else None)

    def _start(self, experiment: str, kind: str, model_id: str, params: Mapping[str, object]) -> "MlflowRun":
        from mlflow.entities import Param

        run = self.client.create_run(
            experiment, run_name=f"{kind}-{model_id[:8]}", tags={"model_id": model_id, "kind": kind}
        )
        flat = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in flattened(params)]
        for start in range(0, len(flat), PARAMS_PER_BATCH):
            self.client.log_batch(run.info.run_id, params=flat[start : start + PARAMS_PER_BATCH])
        return run

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
            # The metric `logged_step` is the last logged step; a process that resumes the training reads it.
            self.client.log_metric(self.run_id, "logged_step", self.last_step, step=self.last_step)

    def finish(self, metrics: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Log the final figures, mark the run finished and return its id."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self.client.log_metric(self.run_id, f"final/{name}", float(value))
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)
        self.client.set_terminated(self.run_id, "FINISHED")
        return self.run_id


def flattened(config: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """A nested config as dotted names and values, for MLflow's parameter table."""
    flat = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat += flattened(value, f"{prefix}{name}.")
        else:
            flat.append((prefix + name, value))
    return flat


def promote(run: Run, evaluation_id: str) -> Champion:
    """Make the evaluated model the champion. Doing it again changes nothing, and registers no second version.

    Raises:
        RegistryError: the evaluation does not exist or did not pass the gate, or the champion has changed since.
    """
    candidate, compared_with = _passing_candidate(run.root, evaluation_id)
    current = champion(run.root)
    if current is not None and current.hashes == candidate.hashes:
        return current
    if current is not None and compared_with != current.dit.hash:
        raise RegistryError(
            f"evaluation {evaluation_id} did not compare with the present champion (version {current.version}, "
            f"{current.dit.hash[:8]}): run the evaluate step again, then promote its result"
        )
    mlflow = client(run.root)
    version = _registered_version(mlflow, model_name(run.root), candidate)
    mlflow.set_registered_model_alias(model_name(run.root), ALIAS, version)
    promoted = Champion.of(candidate, candidate.model_id, evaluation_id, version)
    _write_pointer(run.root, promoted)
    return promoted


def _passing_candidate(root: str, evaluation_id: str) -> tuple[Champion, str]:
    """The evaluated model, and the weights hash of the champion that it was compared with."""
    rows = read_table(root, "evaluations", where=pc.field("evaluation_id") == evaluation_id).to_pylist()
    if not rows or rows[0]["status"] != "ok":
        raise RegistryError(f"there is no evaluation {evaluation_id!r} in {root}: run the evaluate step first")
    row = rows[0]
    if not row["passed"]:
        checks = [Check.model_validate(check) for check in json.loads(row["checks"])]
        raise RegistryError(
            f"evaluation {evaluation_id} did not pass the gate ({failures(checks)}): only a model that passed may "
            "become champion. Train longer or on more clips; the limits are under evaluate.gate."
        )
    figures = json.loads(row["metrics"])
    models = ModelSet.model_validate(figures["models"])
    return Champion.of(models, row["model_id"], evaluation_id), figures["champion"]


def _registered_version(mlflow: "MlflowClient", name: str, candidate: Champion) -> str:
    """The version of these weights in the registry; registers them if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow.get_registered_model(name)
    except MlflowException as err:
        if not _is_absent(err):
            raise
        mlflow.create_registered_model(name, description="Pyramid Flow DiT; the alias `champion` generates")
    for version in mlflow.search_model_versions(f"name = '{name}'"):
        if _as_champion(version).hashes == candidate.hashes:
            return str(version.version)
    tags = {"model_id": candidate.model_id, "evaluation_id": candidate.evaluation_id}
    tags |= {part: getattr(candidate, part).model_dump_json() for part in ModelSet.model_fields}
    # A tracking server refuses a plain path as a source, since it might be a path on the server's disk.
    uri = candidate.dit.uri
    source = f"pyramid:{uri}" if storage.is_local(uri) else uri
    return str(mlflow.create_model_version(name, source=source, tags=tags).version)


def _as_champion(version: "ModelVersion") -> Champion:
    """The champion, from the tags of a registered version."""
    tags = version.tags
    dit, vae, encoder = (ModelFolder.model_validate_json(tags[part]) for part in ("dit", "vae", "encoder"))
    names = (tags.get("model_id", ""), tags.get("evaluation_id", ""))
    return Champion.of(ModelSet(dit=dit, vae=vae, encoder=encoder), *names, str(version.version))


def champion(root: str) -> Champion | None:
    """The model that generates, or None while no evaluation has passed the gate.

    Asks MLflow only when the pointer file may be out of date.
    """
    store = _sqlite_file(root)
    if store is not None:
        if not store.exists():
            return None
        pointer = storage.join(root, "mlflow", "champion.json")
        if storage.exists(pointer):
            content = json.loads(storage.read_bytes(pointer))
            if content["store"] == _stamp(store):
                return Champion.model_validate(content["champion"]) if content["champion"] else None
    current = _ask_champion(root)
    _write_pointer(root, current)
    return current


def _ask_champion(root: str) -> Champion | None:
    mlflow = client(root)
    from mlflow.exceptions import MlflowException

    try:
        return _as_champion(mlflow.get_model_version_by_alias(model_name(root), ALIAS))
    except MlflowException as err:
        if _is_absent(err):
            return None
        raise


def _is_absent(err: "MlflowException") -> bool:
    """Whether an MlflowException says that the model or the alias does not exist."""
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

    return err.error_code in {ErrorCode.Name(code) for code in (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)}


def _sqlite_file(root: str) -> Path | None:
    """The SQLite file of our own tracking store; None when another store was set."""
    is_own = "MLFLOW_TRACKING_URI" not in os.environ
    return Path(tracking_uri(root).removeprefix("sqlite:///")) if is_own else None


def _stamp(store: Path) -> list[int]:
    status = store.stat()
    return [status.st_mtime_ns, status.st_size]


def _write_pointer(root: str, current: Champion | None) -> None:
    store = _sqlite_file(root)
    if store is None:
        return
    content = {"store": _stamp(store), "champion": current.model_dump() if current else None}
    storage.write_bytes(storage.join(root, "mlflow", "champion.json"), json.dumps(content).encode())
