"""Export of the averaged weights of a checkpoint as a model folder in the released layout."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyramid_model.train.checkpoint_names import WHOLE
from tasks.running.errors import StepError
from tasks.tables import storage
from tasks.tables.stored_folders import writing_folder
from tasks.training.line import newest_checkpoint
from tasks.training.train_dit import TrainDiTConfig, untrained_dit
from tasks.training.train_vae import TrainVAEConfig, save_normalised, untrained_vae

if TYPE_CHECKING:
    from torch import nn

    from pyramid_model.train.dit_loss import DiTObjective
    from pyramid_model.train.vae_loss import VAEObjective


class AveragedWeights:
    """The averages of a checkpoint, without weights, moments and random numbers (`checkpoints.Saved`)."""

    def __init__(self, objective: "nn.Module"):
        self.objective, self.step = objective, 0
        self.shadow = {name: weight.detach().float().clone() for name, weight in objective.named_parameters()}

    def tensors(self) -> dict[str, Any]:
        """The averages, which are filled in place."""
        return {"model": {"ema": self.shadow}}

    def facts(self) -> dict[str, Any]:
        """Nothing: the class is only for reading."""
        return {}

    def restore(self, tensors: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Put the averages into the model."""
        self.step = facts["step"]
        self.objective.load_state_dict(tensors["model"]["ema"], strict=False)


def export_checkpoint(checkpoint: str, folder: str) -> int:
    """Write the averaged weights of a checkpoint to a new folder, with config.json; returns the step.

    Shift and scale of a VAE's latents are measured on training clips, as at the end of a training.

    Args:
        checkpoint: folder `step-…` of a checkpoint, or a folder of checkpoints, of which the newest is used.
        folder: path or URI; it must not exist.

    Raises:
        StepError: there is no checkpoint, the folder exists, or no training clip of a VAE can be read any more.
        DamagedCheckpoint: the checkpoint cannot be used.
    """
    from pyramid_model.train.checkpoints import Checkpoints
    from pyramid_model.train.dit_loss import DiTObjective
    from pyramid_model.weights.weights import save_dit
    from tasks.training.clip_reader import ClipReader

    if storage.exists(folder):
        raise StepError(f"{folder} exists: give the name of a new folder")
    uri, step, about = _find(storage.absolute(checkpoint))
    objective = _objective(about)
    averages = AveragedWeights(objective)
    Checkpoints(uri).load(averages, step=step)
    with writing_folder(folder) as target:
        if isinstance(objective, DiTObjective):
            save_dit(objective.dit, target)
        else:
            clips = ClipReader(about["norm_clips"], cache_bytes=0)
            save_normalised(objective.vae, clips, len(clips.clips), target)
    return averages.step


def _find(checkpoint: str) -> tuple[str, int, dict[str, Any]]:
    """Folder of the checkpoints, the step, and what the checkpoint says about its training."""
    uri, content = checkpoint, newest_checkpoint(checkpoint)
    if content is None and storage.exists(file := storage.join(checkpoint, WHOLE)):
        uri, content = checkpoint.rstrip("/").rpartition("/")[0], json.loads(storage.read_bytes(file))
    if content is None:
        raise StepError(f"{checkpoint} has no checkpoint: give a folder step-… with {WHOLE}, or the folder above it")
    return uri, int(content["facts"]["step"]), content["about"]


def _objective(about: Mapping[str, Any]) -> "DiTObjective | VAEObjective":
    """Model and loss of a training, with random weights."""
    from pyramid_model.train.dit_loss import DiTObjective
    from pyramid_model.train.vae_loss import VAEObjective

    if about["kind"] == "dit":
        dit = TrainDiTConfig.model_validate(about["settings"])
        return DiTObjective(untrained_dit(dit), dit.pyramid, dit.loss)
    vae = TrainVAEConfig.model_validate(about["settings"])
    return VAEObjective(untrained_vae(vae), vae.loss)
