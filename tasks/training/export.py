"""Export of the averaged weights of a checkpoint as a model folder in the released layout."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from pyramid_model.train.checkpoint_names import WHOLE
from tasks.running.errors import StepError
from tasks.tables import storage
from tasks.tables.stored_folders import writing_folder
from tasks.training.dit_weights import save_trained_dit
from tasks.training.marks import About, Mark, newest_mark, read_mark
from tasks.training.train_dit import TrainDiTConfig
from tasks.training.train_vae import TrainVAEConfig, save_normalised, untrained_objective

if TYPE_CHECKING:
    from torch import nn

    from pyramid_model.train.dit_loss import DiTObjective
    from pyramid_model.train.vae_loss import VAEObjective
    from tasks.training.clip_reader import SelectedClip


class AveragedWeights:
    """The averages of a checkpoint, without weights, moments and random numbers (`checkpoints.Saved`)."""

    def __init__(self, objective: "nn.Module"):
        from pyramid_model.train.ema import trained_weights

        self.objective, self.step = objective, 0
        self.shadow = {name: weight.detach().float().clone() for name, weight in trained_weights(objective)}

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
    from tasks.training.clip_reader import ClipReader

    if storage.exists(folder):
        raise StepError(f"{folder} exists: give the name of a new folder")
    uri, mark = _find(storage.absolute(checkpoint))
    objective = _objective(mark.about)
    averages = AveragedWeights(objective)
    Checkpoints(uri).load(averages, step=mark.facts.step)
    with writing_folder(folder) as target:
        if isinstance(objective, DiTObjective):
            config = TrainDiTConfig.model_validate(mark.about.settings)
            save_trained_dit(objective.dit, target, config.init_from, config.lora)
        else:
            clips = ClipReader(cast("list[SelectedClip]", mark.about.norm_clips), cache_bytes=0)
            save_normalised(objective.vae, clips, len(clips.clips), target)
    return averages.step


def _find(checkpoint: str) -> tuple[str, Mark]:
    """Folder of the checkpoints, and what the checkpoint says about itself."""
    uri, mark = checkpoint, newest_mark(checkpoint)
    if mark is None and storage.exists(file := storage.join(checkpoint, WHOLE)):
        uri, mark = checkpoint.rstrip("/").rpartition("/")[0], read_mark(file)
    if mark is None:
        raise StepError(f"{checkpoint} has no checkpoint: give a folder step-… with {WHOLE}, or the folder above it")
    return uri, mark


def _objective(about: About) -> "DiTObjective | VAEObjective":
    """Model and loss of a training, with random weights.

    Raises:
        StepError: its settings are not those of this version.
    """
    from pyramid_model.train.dit_loss import DiTObjective

    try:
        if about.kind == "dit":
            dit = TrainDiTConfig.model_validate(about.settings)
            return DiTObjective(dit.untrained(), dit.pyramid, dit.loss)
        return untrained_objective(TrainVAEConfig.model_validate(about.settings))
    except ValidationError as err:
        place = ".".join(map(str, err.errors()[0]["loc"]))
        raise StepError(
            f"the checkpoint's settings are not those of a train_{about.kind} of this version ({place}: "
            f"{err.errors()[0]['msg']}): export it with the version that trained it"
        ) from err
