"""Lines of trainings: the training that a new one continues, and the ids of both.

Trainings of one line have the same model, loss, seed of the initial weights and, for a DiT, the same VAE and text
encoder. Each training is a row of `models`. A training may continue another one of its line with other settings of the
optimiser, other clips or another number of workers: it starts from the last checkpoint, and its steps are counted on.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyramid_model.config import Config
from pyramid_model.train.checkpoint_names import WHOLE, checkpoint_name
from pyramid_model.weights.record import TrainedOn
from tasks.running.errors import StepError
from tasks.running.run import Run, params_hash
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.tables.newest import ORDER, newest_row
from tasks.tables.rows import ModelRow
from tasks.training.ids import Kind, Parent, TrainingIds, checkpoints_of
from tasks.training.marks import About, newest_mark

NEWEST = "newest"
LINE_SETTINGS: dict[Kind, tuple[str, ...]] = {
    "vae": ("model", "loss"),
    "dit": ("model", "mmdit", "pyramid", "loss", "lora"),
}
COLUMNS = ("model_id", "line_id", "data_id", "first_step", "num_steps", "config", "params_hash", *ORDER)


def identify(
    run: Run,
    kind: Kind,
    version: str,
    config: Config,
    continue_from: str,
    trained_on: TrainedOn,
    data_ids: Sequence[object],
) -> TrainingIds:
    """Ids of the training with these settings and data.

    Args:
        run: its root has the earlier trainings.
        kind: of the model.
        version: of the step.
        config: settings of the step.
        continue_from: newest, a model_id, a folder of checkpoints, or empty. With `newest` the ids are those of the
            newest training of the line if that had these settings and data.
        trained_on: VAE and text encoder of the data.
        data_ids: ids of the data.

    Raises:
        StepError: the training to continue does not exist, or is of another line.
    """
    line = _line_of(kind, config.model_dump(mode="json"), trained_on)
    line_id, data_id = content_id(kind, version, line), content_id(list(data_ids))
    parent = None
    if continue_from == NEWEST:
        newest = newest_row(_trainings(run.root, kind).filter(pc.field("line_id") == line_id), ModelRow)
        if newest and (newest["data_id"], newest["params_hash"]) == (data_id, params_hash(config)):
            return TrainingIds(model_id=newest["model_id"], line_id=line_id, data_id=data_id)
        parent = _as_parent(run.root, newest) if newest else None
    elif continue_from:
        parent = _find_parent(run.root, kind, continue_from, line)
    ancestor = [parent.model_id, parent.step] if parent else []
    model_id = content_id(line_id, params_hash(config), data_id, ancestor)
    return TrainingIds(model_id=model_id, line_id=line_id, data_id=data_id, parent=parent)


def check_parent(kind: Kind, parent: Parent) -> None:
    """Check that the checkpoint exists from which a training starts.

    Raises:
        StepError: it was removed.
    """
    if not storage.exists(storage.join(parent.checkpoints, checkpoint_name(parent.step), WHOLE)):
        raise StepError(
            f"training {parent.model_id} cannot be continued: its checkpoint of step {parent.step} is not in "
            f"{parent.checkpoints} any more. Set train_{kind}.continue_from to another training, or leave it empty to "
            "start from initial weights"
        )


def _line_of(kind: Kind, settings: Mapping[str, Any], trained_on: TrainedOn) -> dict[str, Any]:
    """What the trainings of a line share, by the name that messages use. settings: JSON of the step's settings."""
    line = {f"train_{kind}.{name}": settings.get(name) for name in LINE_SETTINGS[kind]}
    line[f"train_{kind}.optim.seed"] = settings.get("optim", {}).get("seed")
    models = {"VAE": trained_on.vae, "text encoder": trained_on.encoder, "init_from": trained_on.init}
    return line | {name: model.hash for name, model in models.items() if model}


def _trainings(root: str, kind: Kind) -> pa.Table:
    """Rows of the finished trainings of a kind."""
    return read_table(root, "models", COLUMNS, where=(pc.field("status") == "ok") & (pc.field("kind") == kind))


def _as_parent(root: str, row: ModelRow) -> Parent:
    step = row["first_step"] + row["num_steps"]
    return Parent(model_id=row["model_id"], step=step, checkpoints=checkpoints_of(root, row["model_id"]))


def _find_parent(root: str, kind: Kind, continue_from: str, line: Mapping[str, Any]) -> Parent:
    """The training of that id, or of the checkpoints in that folder.

    Raises:
        StepError: there is none, or it is of another line.
    """
    row = newest_row(_trainings(root, kind).filter(pc.field("model_id") == continue_from), ModelRow)
    if row:
        parent = _as_parent(root, row)
        about = About.model_validate({"kind": kind, "model_id": row["model_id"], **json.loads(row["config"])})
    else:
        parent, about = _read_parent(root, kind, storage.absolute(continue_from))
    if about.kind != kind:
        raise StepError(f"train_{kind}.continue_from {continue_from!r} is the training of a {about.kind}")
    other = _line_of(kind, about.settings, about.trained_on)
    differing = [name for name in (*line, *(set(other) - set(line))) if line.get(name) != other.get(name)]
    if differing:
        raise StepError(
            f"train_{kind}.continue_from {continue_from!r} is a training with another {', '.join(differing)}: only a "
            "training with the same ones can be continued. Set them to what they were, or leave continue_from empty"
        )
    return parent


def _read_parent(root: str, kind: Kind, folder: str) -> tuple[Parent, About]:
    """The training whose checkpoints are in a folder, and what its newest one says about it."""
    mark = newest_mark(folder)
    if mark is None:
        raise StepError(
            f"train_{kind}.continue_from {folder!r} is neither the model_id of a {kind} that was trained in {root} nor "
            f"a folder with checkpoints (step-…/{WHOLE}): pyramid manifest show {root} models lists the trainings"
        )
    return Parent(model_id=mark.about.model_id, step=mark.facts.step, checkpoints=folder), mark.about
