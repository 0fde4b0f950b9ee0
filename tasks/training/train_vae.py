"""Training of the video VAE on the selected clips."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from pydantic import Field

from pyramid_model.config import VAEConfig
from pyramid_model.train.buckets import parse_bucket
from pyramid_model.train.config import VAEBatchConfig, VAELossConfig
from pyramid_model.weights.record import TrainedOn
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.running.step import step
from tasks.tables.current import selected_clips
from tasks.tables.delta import table_version
from tasks.training.job import Job, TrainingConfig, TrainingResult, model_id, pick_samples, positions_alike
from tasks.training.training import run_training

if TYPE_CHECKING:
    import numpy as np
    from torch import device

    from pyramid_model.train.loop import Batch
    from pyramid_model.train.vae_loss import VAEObjective

VERSION = "2"
CLIP_COLUMNS = ("clip_id", "uri")  # `selected_clips` adds bucket and split


class SelectedClip(TypedDict):
    """A clip of a selection. bucket: the size it is decoded at."""

    clip_id: str
    uri: str
    bucket: str
    split: str


class TrainVAEConfig(TrainingConfig):
    """Sizes and training of the VAE."""

    model: VAEConfig = VAEConfig()
    loss: VAELossConfig = VAELossConfig()
    batch: VAEBatchConfig = VAEBatchConfig()
    num_val_clips: int = Field(default=16, ge=1, description="held-out clips for validation")
    num_norm_clips: int = Field(
        default=256, ge=1, description="training clips from which shift and scale of the latents are computed"
    )


@step
def train_vae(run: Run, config: TrainVAEConfig) -> TrainingResult:
    """Train a VAE, or return the existing model for the same settings and clips.

    Raises:
        StepError: no training or no validation clips, clips that are too short, or a training that failed.
    """
    train_clips = selected_clips(run.root, config.selection, "train", CLIP_COLUMNS).to_pylist()
    val_clips = selected_clips(run.root, config.selection, "val", CLIP_COLUMNS).to_pylist()[: config.num_val_clips]
    check_splits(len(train_clips), len(val_clips), "clips")
    _check_frames(config, train_clips)
    ids = [[clip["clip_id"], clip["bucket"]] for clip in (*train_clips, *val_clips)]
    versions = {name: table_version(run.root, name) for name in ("clips", "selections")}
    job = Job(
        kind="vae",
        model_id=model_id("vae", VERSION, config, [*ids, len(train_clips)]),
        run=run,
        config=config,
        training=partial(VAETraining, config=config, train=train_clips, val=val_clips),
        trained_on=TrainedOn(selection=config.selection, versions=versions),
    )
    return run_training(job, "train_vae", VERSION)


def check_splits(num_train: int, num_val: int, what: str) -> None:
    """Raise an error for a training without training clips or without held-out clips.

    Raises:
        StepError: a split is empty.
    """
    for split, count in (("train", num_train), ("val", num_val)):
        if not count:
            raise StepError(
                f"no {what} in the split {split!r}: loosen the limits of the select step, "
                "add videos, or pin a split in source.yaml"
            )


def _check_frames(config: TrainVAEConfig, clips: Sequence[SelectedClip]) -> None:
    factor = config.model.time_factor
    num_frames = config.batch.num_frames
    if (num_frames - 1) % factor:
        nearest = num_frames - (num_frames - 1) % factor
        raise StepError(
            f"train_vae.batch.num_frames {num_frames} does not fit the VAE, which takes 1 + {factor}k frames: "
            f"set it to {nearest}"
        )
    shortest = min(parse_bucket(clip["bucket"]).num_frames for clip in clips)
    if shortest < num_frames:
        raise StepError(
            f"clips of {shortest} frames are selected and train_vae.batch.num_frames is {num_frames}: "
            "lower it, or select longer clips (select.buckets)"
        )


class VAETraining:
    """The VAE's part of a training. Every worker holds all clips, decoded at the size of their bucket, in memory.

    That is 0.4 MB for a clip of 33 frames at 64x64 px and 120 MB for one of 121 frames at 480x704 px. A
    machine holds one copy for each of its workers: use more machines, or select fewer clips, before memory is full.
    """

    def __init__(
        self,
        config: TrainVAEConfig,
        train: Sequence[SelectedClip],
        val: Sequence[SelectedClip],
        rank: int,
        world_size: int,
        device: "device",
    ):
        self.config, self.rank, self.world_size, self.device = config, rank, world_size, device
        self.bad: list[str] = []
        self.train_ids, self.train = self._read(train)
        self.val_ids, self.val = self._read(val)
        check_splits(len(self.train), len(self.val), f"readable clips (first error: {(self.bad or ['none'])[0]})")
        self.num_train, self.num_val = len(self.train), len(self.val)
        self.alike = positions_alike([clip.shape[1:] for clip in self.train])

    def _read(self, clips: Sequence[SelectedClip]) -> tuple[list[str], "list[np.ndarray]"]:
        """Ids and frames of the clips that can be read; the others are listed in `bad`."""
        from pyramid_model.video.video import VideoError, read_clip

        ids, frames = [], []
        for clip in clips:
            bucket = parse_bucket(clip["bucket"])
            size = {"height": bucket.height, "width": bucket.width}
            try:
                frames.append(read_clip(clip["uri"], **size, fps=bucket.fps, num_frames=bucket.num_frames))
                ids.append(clip["clip_id"])
            except (VideoError, ValueError) as err:
                self.bad.append(f"{clip['clip_id']}: {err}")
        return ids, frames

    def objective(self) -> "VAEObjective":
        """The VAE with its loss; the same weights in every worker."""
        import torch

        from pyramid_model.train.batches import step_generator
        from pyramid_model.train.vae_init import initialise_vae
        from pyramid_model.train.vae_loss import VAEObjective
        from pyramid_model.vae.autoencoder import CausalVideoVAE

        torch.manual_seed(self.config.optim.seed)
        vae = CausalVideoVAE(self.config.model)
        initialise_vae(vae, step_generator(self.config.optim.seed, 0, -2))
        return VAEObjective(vae, self.config.loss)

    def batch(self, step: int) -> "Batch":
        """Random cuts of this worker's clips."""
        from pyramid_model.train.batches import step_generator, vae_batch
        from pyramid_model.train.loop import Batch

        optim = self.config.optim
        generator = step_generator(optim.seed, step, self.rank)
        batch_size, num_frames = self.config.batch.at(step, optim.batch_size)
        indices = pick_samples(self.alike, batch_size, optim.seed, step, self.rank, self.world_size)
        frames = vae_batch(self.train, indices, num_frames, generator, self.config.batch.crop)
        return Batch((frames.to(self.device), generator), [self.train_ids[i] for i in indices])

    def validate(self, objective: "VAEObjective") -> dict[str, float]:
        """Reconstruction of the held-out clips."""
        from pyramid_model.train.vae_loss import validate_vae

        factor = self.config.model.time_factor
        return validate_vae(objective.vae, [clip[: len(clip) - (len(clip) - 1) % factor] for clip in self.val])

    def save(self, objective: "VAEObjective", folder: str) -> None:
        """Measure shift and scale of the latents on training clips, and write the VAE with them."""
        import torch

        from pyramid_model.vae.norm import measure_latent_norm
        from pyramid_model.vae.pixels import to_unit_range
        from pyramid_model.weights.weights import save_vae

        vae = objective.vae.eval()
        factor = vae.config.time_factor
        latents = []
        with torch.inference_mode():
            for clip in self.train[: self.config.num_norm_clips]:
                frames = to_unit_range(clip[: len(clip) - (len(clip) - 1) % factor])[None]
                latents.append(vae.encode(frames.to(self.device)).mode().cpu())
        norm = measure_latent_norm(latents)
        vae.config = VAEConfig.model_validate(vae.config.model_dump() | {"latent_norm": norm})
        save_vae(vae, folder)
