"""Training of the video VAE on the selected clips."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pyramid_model.config import NOT_IDENTITY, LPIPSConfig, VAEConfig, VAEGANConfig
from pyramid_model.train.buckets import parse_bucket
from pyramid_model.train.config import MixConfig, VAEBatchConfig, VAELossConfig
from pyramid_model.weights.record import ModelFolder, TrainedOn
from tasks.models.folders import find_model, read_vae, vae_config
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.running.step import step
from tasks.tables import storage
from tasks.tables.current import selected_clips
from tasks.tables.delta import table_version
from tasks.training.job import Job, TrainingConfig, TrainingResult, check_disjoint
from tasks.training.line import identify
from tasks.training.training import run_training

if TYPE_CHECKING:
    import numpy as np
    from torch import device

    from pyramid_model.train.loop import Batch
    from pyramid_model.train.mixture import BatchPlan
    from pyramid_model.train.vae_loss import VAEObjective
    from pyramid_model.vae.autoencoder import CausalVideoVAE
    from tasks.training.clip_reader import ClipReader, SelectedClip

VERSION = "5"
NUM_INIT_EXCERPTS, MAX_INIT_FRAMES, MAX_INIT_SIDE = 64, 17, 128  # that the first weights are fitted to
MAX_CODEC_CLIPS = 256  # that the linear codec is fitted to
CLIP_COLUMNS = ("clip_id", "uri")  # `selected_clips` adds bucket and split


class TrainVAEConfig(TrainingConfig):
    """Sizes and training of the VAE."""

    model: VAEConfig = VAEConfig()
    init_from: str = Field(
        default="",
        description="folder of a VAE, released or trained here, whose weights the training starts from; its sizes must "
        "be those of `model`. Empty: a linear codec that is fitted to training clips",
        json_schema_extra=NOT_IDENTITY,
    )
    loss: VAELossConfig = VAELossConfig()
    gan: VAEGANConfig | None = Field(
        default=None,
        description="the published loss, with LPIPS and a discriminator, in place of `loss`; null: `loss`",
    )
    batch: VAEBatchConfig = VAEBatchConfig()
    num_val_clips: int = Field(default=16, ge=1, description="held-out clips for validation")
    num_norm_clips: int = Field(
        default=256, ge=1, description="training clips from which shift and scale of the latents are computed"
    )
    cache_gb: float = Field(
        default=1.0,
        ge=0,
        description="decoded clips that a worker keeps in memory, GB; others are decoded again in each epoch",
        json_schema_extra=NOT_IDENTITY,
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainVAEConfig":
        if self.gan is None:
            return self
        if self.gan.perceptual_weight and not self.gan.lpips:
            raise ValueError(
                "gan.perceptual_weight needs LPIPS, whose weights you provide: set train_vae.gan.lpips.files to the "
                "files of the network and of LPIPS, or train_vae.gan.perceptual_weight to 0"
            )
        parallel = self.parallel
        if parallel.share_batch > 1 or parallel.share_weights != 1 or parallel.precision != "float32":
            raise ValueError(
                "gan trains with whole weights in float32 on every worker: leave parallel.share_batch and "
                "parallel.share_weights at 1 and parallel.precision at float32"
            )
        return self


@step
def train_vae(run: Run, config: TrainVAEConfig) -> TrainingResult:
    """Train a VAE, or return the existing model for the same settings and clips.

    Raises:
        StepError: no training or no validation clips, clips that are too short, no training to continue, or a training
            that failed.
    """
    train_clips = selected_clips(run.root, config.selection, "train", CLIP_COLUMNS).to_pylist()
    val_clips = selected_clips(run.root, config.selection, "val", CLIP_COLUMNS).to_pylist()[: config.num_val_clips]
    check_splits(len(train_clips), len(val_clips), "clips")
    check_disjoint([clip["clip_id"] for clip in train_clips], [clip["clip_id"] for clip in val_clips])
    _check_frames(config, train_clips)
    if config.gan:
        config = config.model_copy(update={"gan": _checked_gan(config.gan, config.batch.crop, train_clips)})
    if init := _initial_model(run, config):
        config = config.model_copy(update={"init_from": init.uri})  # workers have other working directories
    ids = [[clip["clip_id"], clip["bucket"]] for clip in (*train_clips, *val_clips)]
    versions = {name: table_version(run.root, name) for name in ("clips", "selections")}
    trained_on = TrainedOn(selection=config.selection, versions=versions, init=init)
    job = Job(
        kind="vae",
        ids=identify(run, "vae", VERSION, config, config.continue_from, trained_on, [*ids, len(train_clips)]),
        run=run,
        config=config,
        training=partial(VAETraining, config=config, train=train_clips, val=val_clips),
        trained_on=trained_on,
        norm_clips=train_clips[: config.num_norm_clips],
        check=partial(_check_lpips, config.gan.lpips) if config.gan and config.gan.lpips else None,
    )
    return run_training(job, "train_vae", VERSION)


def check_splits(num_train: int, num_val: int, description: str) -> None:
    """Raise an error for a training without training clips or without held-out clips.

    Raises:
        StepError: a split is empty.
    """
    for split, count in (("train", num_train), ("val", num_val)):
        if not count:
            raise StepError(
                f"no {description} in the split {split!r}: loosen the limits of the select step, "
                "add videos, or pin a split in source.yaml"
            )


def _check_frames(config: TrainVAEConfig, clips: "Sequence[SelectedClip]") -> None:
    num_frames = config.batch.num_frames
    if num_frames != (nearest := config.model.whole_frames(num_frames)):
        raise StepError(
            f"train_vae.batch.num_frames {num_frames} does not fit the VAE, which takes 1 + "
            f"{config.model.time_factor}k frames: "
            f"set it to {nearest}"
        )
    shortest = min(parse_bucket(clip["bucket"]).num_frames for clip in clips)
    if shortest < num_frames:
        raise StepError(
            f"clips of {shortest} frames are selected and train_vae.batch.num_frames is {num_frames}: "
            "lower it, or select longer clips (select.buckets)"
        )


def _initial_model(run: Run, config: TrainVAEConfig) -> ModelFolder | None:
    """The VAE that the training starts from; None for a fitted linear codec.

    Raises:
        StepError: there is no VAE, or it has other sizes.
    """
    if not config.init_from:
        return None
    model = find_model(run, "vae", config.init_from)
    try:
        its = vae_config(model.uri).model_dump(mode="json")
    except (OSError, ValueError) as err:
        raise StepError(f"train_vae.init_from {config.init_from!r} cannot be used: {err}") from err
    mine = config.model.model_dump(mode="json")
    if differing := [name for name in mine if name != "latent_norm" and mine[name] != its[name]]:
        changes = " ".join(f"--set train_vae.model.{name}='{json.dumps(its[name])}'" for name in differing)
        raise StepError(f"the VAE {config.init_from!r} has other sizes than train_vae.model: {changes} would fit it")
    return model


def _checked_gan(gan: VAEGANConfig, crop: int | None, clips: "Sequence[SelectedClip]") -> VAEGANConfig:
    """The settings with absolute paths of LPIPS.

    Raises:
        StepError: a file of LPIPS does not exist, or frames are too small for the discriminator.
    """
    sides = [crop] if crop else [min(b.height, b.width) for b in (parse_bucket(clip["bucket"]) for clip in clips)]
    if min(sides) < gan.smallest_side:
        raise StepError(
            f"frames of {min(sides)} px are too small for a discriminator of {gan.discriminator_layers} layers, which "
            f"needs {gan.smallest_side} px: lower train_vae.gan.discriminator_layers, or train on larger clips"
        )
    if gan.lpips is None:
        return gan
    files = tuple(map(storage.absolute, gan.lpips.files))
    for file in files:
        if not (storage.is_local(file) and storage.exists(file)):
            raise StepError(
                f"there is no file {file} on this machine: set train_vae.gan.lpips.files to the weights of LPIPS"
            )
    return gan.model_copy(update={"lpips": gan.lpips.model_copy(update={"files": files})})


def _check_lpips(lpips: LPIPSConfig) -> None:
    """Read the files of LPIPS once. Imports torch.

    Raises:
        StepError: they hold something else.
    """
    from pyramid_model.weights.weights import load_perceptual

    try:
        load_perceptual(lpips.files, lpips.network)
    except ValueError as err:
        first, *missing = str(err).splitlines()
        raise StepError(
            f"{', '.join(lpips.files)} do not hold the weights of LPIPS on {lpips.network} "
            f"({missing[0].strip() if missing else first}): set train_vae.gan.lpips.files to its files, or "
            "train_vae.gan.lpips.network to the network of these files"
        ) from err


class VAETraining:
    """The VAE's part of a training. Clips are decoded when a step needs them, at the size of their bucket.

    A decoded clip takes 0.4 MB for 33 frames at 64x64 px and 120 MB for 121 frames at 480x704 px.
    """

    def __init__(
        self,
        config: TrainVAEConfig,
        train: "Sequence[SelectedClip]",
        val: "Sequence[SelectedClip]",
        device: "device",
    ):
        self.config, self.device = config, device
        from tasks.training.clip_reader import ClipReader

        self.train = ClipReader(train, config.cache_gb * 1e9, config.cpus_per_worker)
        held_out = ClipReader(val, 0, config.cpus_per_worker)
        frames = held_out.threads.map(held_out.read, range(len(val)))
        self.val = [clip for clip in frames if clip is not None]
        self.bad_val = held_out.bad
        check_splits(len(train), len(self.val), f"readable clips (first error: {(self.bad_val or ['none'])[0]})")
        self.num_train, self.num_val = len(train), len(self.val)
        self.plans = {size: self._plan(size) for size in (config.batch.image_batch_size, config.optim.batch_size)}

    def _plan(self, batch_size: int) -> "BatchPlan":
        from pyramid_model.train.mixture import BatchPlan

        sources = [""] * self.num_train
        sizes = batch_size, 1, self.config.optim.seed, self.config.num_batches
        return BatchPlan(self.train.shapes, sources, MixConfig(), *sizes)

    @property
    def bad(self) -> list[str]:
        """Clips that could not be read so far."""
        return [*self.train.bad, *self.bad_val]

    def describe(self) -> list[str]:
        """See `BatchPlan.describe`; of the steps on video."""
        buckets = [clip["bucket"] for clip in self.train.clips]
        num_steps = max(0, self.config.optim.num_steps - self.config.batch.image_steps)
        return self.plans[self.config.optim.batch_size].describe(
            buckets, Counter(buckets), num_steps, with_tokens=False
        )

    def objective(self) -> "VAEObjective":
        """The VAE with its loss; the same weights in every worker."""
        return untrained_objective(self.config)

    def probe(self, objective: "VAEObjective") -> None:
        """See `probe_vae`."""
        from pyramid_model.train.causality import probe_vae

        probe_vae(objective.vae)

    def initialise(self, objective: "VAEObjective") -> None:
        """Fit the VAE to excerpts of training clips as a linear codec, unless it has given weights."""
        if self.config.init_from:
            return
        import torch

        from pyramid_model.train.batches import step_generator, vae_batch
        from pyramid_model.train.vae_init import initialise_vae

        buckets = [parse_bucket(clip["bucket"]) for clip in self.train.clips]
        space = self.config.model.space_factor
        num_frames = min(MAX_INIT_FRAMES, *(bucket.num_frames for bucket in buckets))
        side = min(MAX_INIT_SIDE, *(min(bucket.height, bucket.width) for bucket in buckets))
        generator = step_generator(self.config.optim.seed, 0, -2)
        excerpts = []
        for number in range(NUM_INIT_EXCERPTS):
            clip = self.train.read(number % self.num_train)
            if clip is not None:
                sizes = self.config.model.whole_frames(num_frames), generator, side - side % space
                excerpts.append(vae_batch([clip], [0], *sizes))
        if not excerpts:
            raise StepError(f"no clip can be read, first: {self.train.bad[0]}. Restore the clips or select others")
        device = next(objective.parameters()).device
        initialise_vae(objective.vae, torch.cat(excerpts).to(device), generator)

    def batch(self, step: int, index: int) -> "Batch":
        """Random excerpts of clips."""
        batch_size, num_frames = self.config.batch.at(step, self.config.optim.batch_size)
        plan = self.plans[batch_size]
        return self._batch_of(plan, plan.pick(step, index), num_frames, step, index)

    def largest(self) -> "tuple[str, Batch]":
        """Excerpts of the largest clips, and their bucket."""
        plan = self.plans[self.config.optim.batch_size]
        positions = plan.largest()
        batch = self._batch_of(plan, positions, self.config.batch.num_frames, 0, 0)
        return self.train.clips[positions[0]]["bucket"], batch

    def _batch_of(self, plan: "BatchPlan", positions: Sequence[int], num_frames: int, step: int, index: int) -> "Batch":
        from pyramid_model.train.batches import step_generator, vae_batch
        from pyramid_model.train.loop import Batch

        generator = step_generator(self.config.optim.seed, step, index)
        readable = list(self.train.threads.map(partial(self._readable, plan), positions))
        clips = [frames for _, frames in readable]
        frames = vae_batch(clips, range(len(clips)), num_frames, generator, self.config.batch.crop)
        ids = [self.train.clips[position]["clip_id"] for position, _ in readable]
        return Batch((frames.to(self.device), generator, step), ids)

    def _readable(self, plan: "BatchPlan", position: int) -> "tuple[int, np.ndarray]":
        """A clip with its position. One that cannot be read is replaced by the next of its size."""
        if readable := plan.readable(position, self.train.read):
            return readable
        raise StepError(
            f"no clip of a size can be read, first: {self.train.bad[0]}. Restore the clips or select others"
        )

    def validate(self, objective: "VAEObjective") -> dict[str, float]:
        """Reconstruction of the held-out clips."""
        from pyramid_model.train.vae_loss import validate_vae

        whole = [clip[: self.config.model.whole_frames(len(clip))] for clip in self.val]
        return validate_vae(objective.vae, whole, objective.perceptual)

    def baselines(self, objective: "VAEObjective") -> dict[str, float]:
        """`val_psnr_linear`: dB of the linear codec with as many numbers as the VAE, fitted to training clips."""
        from pyramid_model.metrics.linear_codec import LinearCodec

        clips = map(self.train.read, range(min(MAX_CODEC_CLIPS, self.num_train)))
        codec = LinearCodec.fit((clip for clip in clips if clip is not None), self.config.model)
        return {"val_psnr_linear": codec.validate(self.val)["val_psnr"]}

    def save(self, objective: "VAEObjective", folder: str) -> None:
        """Write the VAE, with shift and scale of its latents on training clips."""
        save_normalised(objective.vae, self.train, self.config.num_norm_clips, folder)


def save_normalised(vae: "CausalVideoVAE", clips: "ClipReader", num_clips: int, folder: str) -> None:
    """Measure shift and scale of a VAE's latents on the first clips that can be read, and write the VAE with them.

    Raises:
        StepError: none of the clips can be read.
    """
    import torch

    from pyramid_model.vae.norm import measure_latent_norm
    from pyramid_model.vae.pixels import to_unit_range
    from pyramid_model.weights.weights import save_vae

    vae.eval()
    device, latents = next(vae.parameters()).device, []
    with torch.inference_mode():
        for clip in map(clips.read, range(min(num_clips, len(clips.clips)))):
            if clip is not None:
                frames = to_unit_range(clip[: vae.config.whole_frames(len(clip))])[None]
                latents.append(vae.encode(frames.to(device)).mode().cpu())
    if not latents:
        raise StepError(f"no clip can be read to measure the latents, first: {(clips.bad or ['there is none'])[0]}")
    norm = measure_latent_norm(latents)
    vae.config = VAEConfig.model_validate(vae.config.model_dump() | {"latent_norm": norm})
    save_vae(vae, folder)


def untrained_objective(config: TrainVAEConfig) -> "VAEObjective":
    """The VAE of a training with this config, with given or random weights, and its loss."""
    import torch

    from pyramid_model.train.vae_gan import VAEGANObjective
    from pyramid_model.train.vae_loss import VAEObjective
    from pyramid_model.vae.autoencoder import CausalVideoVAE
    from pyramid_model.weights.weights import load_perceptual

    torch.manual_seed(config.optim.seed)
    vae, gan = read_vae(config.init_from).train() if config.init_from else CausalVideoVAE(config.model), config.gan
    if gan is None:
        return VAEObjective(vae, config.loss)
    return VAEGANObjective(vae, gan, load_perceptual(gan.lpips.files, gan.lpips.network) if gan.lpips else None)
