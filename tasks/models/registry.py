"""Registered models in MLflow, and which one is champion.

MLflow takes seconds to import, so `champion` reads a small pointer file, as long as the SQLite file of the tracking
store has not changed since that was written. Moving the alias by hand changes the SQLite file, so the pointer is then
ignored.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pyramid_model.weights.record import ModelFolder
from tasks.models.folders import ModelSet
from tasks.models.gate import Check, failures
from tasks.models.tracking import RegistryError, client, experiment_id, of_root, tracking_uri
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.delta import read_table

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException

ALIAS = "champion"


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


def model_name(root: str) -> str:
    """The registered model of a root, which has one champion."""
    return of_root("pyramid-dit", root)


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
    version = _registered_version(run, mlflow, candidate)
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


def _registered_version(run: Run, mlflow: "MlflowClient", candidate: Champion) -> str:
    """The version of these weights in the registry; registers them if it does not exist."""
    from mlflow.exceptions import MlflowException

    name = model_name(run.root)
    try:
        mlflow.get_registered_model(name)
    except MlflowException as err:
        if not _is_absent(err):
            raise
        mlflow.create_registered_model(name, description="Pyramid Flow DiT; the alias `champion` generates")
    for version in mlflow.search_model_versions(f"name = '{name}'"):
        if _as_champion(version).hashes == candidate.hashes:
            return str(version.version)
    tags = {"root": run.root, "model_id": candidate.model_id, "evaluation_id": candidate.evaluation_id, **run.links}
    tags |= {part: getattr(candidate, part).model_dump_json() for part in ModelSet.model_fields}
    source, run_id = _model_files(run.root, mlflow, candidate)
    return str(mlflow.create_model_version(name, source=source, run_id=run_id or None, tags=tags).version)


def _model_files(root: str, mlflow: "MlflowClient", candidate: Champion) -> tuple[str, str]:
    """URI from which `mlflow.artifacts.download_artifacts` copies the DiT, and the MLflow run of its training if known.

    A tracking server refuses paths of other machines. It gets a copy of a DiT that lies in a local folder.
    """
    where = (pc.field("model_id") == candidate.model_id) & (pc.field("status") == "ok")
    rows = read_table(root, "models", ["mlflow_run_id"], where=where).to_pylist() if candidate.model_id else []
    run_id = rows[0]["mlflow_run_id"] if rows else ""
    uri = candidate.dit.uri
    if not storage.is_local(uri):
        return uri, run_id
    if _sqlite_file(root) is not None:
        return Path(uri).absolute().as_uri(), run_id
    if not run_id:
        experiment = experiment_id(mlflow, root, model_name(root))
        run_id = mlflow.create_run(experiment, run_name=candidate.dit.hash[:8]).info.run_id
        mlflow.set_terminated(run_id)
    mlflow.log_artifacts(run_id, uri, "model")
    return f"runs:/{run_id}/model", run_id


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
        pointer = _pointer(root)
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


def _pointer(root: str) -> str:
    """URI of the pointer file."""
    return storage.join(root, "mlflow", "champion.json")


def _stamp(store: Path) -> list[int]:
    status = store.stat()
    return [status.st_mtime_ns, status.st_size]


def _write_pointer(root: str, current: Champion | None) -> None:
    store = _sqlite_file(root)
    if store is None:
        return
    content = {"store": _stamp(store), "champion": current.model_dump() if current else None}
    storage.write_bytes(_pointer(root), json.dumps(content).encode())
