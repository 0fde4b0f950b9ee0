"""Ids of a training and of the one that it continues, and the folder of its checkpoints."""

from typing import Literal

from pyramid_model.config import Config
from tasks.tables import storage

Kind = Literal["vae", "dit"]


class Parent(Config):
    """The training that another one continues, from its checkpoint `step` in the folder `checkpoints`."""

    model_id: str
    step: int
    checkpoints: str


class TrainingIds(Config):
    """Ids of a training.

    model_id: hash of the other ids, the settings and the parent. line_id: hash of what all trainings of a line share.
    data_id: hash of the ids of the data. parent: None: the training starts from initial weights.
    """

    model_id: str
    line_id: str
    data_id: str
    parent: Parent | None = None


def checkpoints_of(root: str, model_id: str) -> str:
    """Folder of the checkpoints of a training."""
    return storage.join(root, "checkpoints", model_id)
