"""Training of the diffusion transformer on latents and text features."""

import random
from typing import TYPE_CHECKING, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.train.config import DiTLossConfig, OptimConfig
from tasks.captions import Kind
from tasks.dit_data import (
    Pair,
    PairSource,
    explain_no_pairs,
    find_pairs,
    load_null_text,
    load_pairs,
    pair_source,
    text_feature_ids,
    vae_settings,
)
from tasks.encoders import find_encoder
from tasks.model_files import find_model
from tasks.pipeline import StepError
from tasks.step import Run, StepResult, step
from tasks.text_features import NULL_TEXT
from tasks.training import Job, TrainingConfig, model_id, pick_samples, positions_alike, run_training

if TYPE_CHECKING:
    from torch import device, nn

    from pyramid_model.train.loop import Batch

VERSION = "1"


class DiTOptimConfig(OptimConfig):
    """How the DiT is optimised."""

    batch_size: int = Field(6, ge=1, description="samples a worker and step: a multiple of the columns (one a stage)")


class TrainDiTConfig(TrainingConfig):
    """How the DiT is made and trained."""

    optim: DiTOptimConfig = DiTOptimConfig()
    captions: str = Field(
        "",
        description="which captions: output of the captions step, or kinds such as dense;short; empty: the newest of "
        "each clip, or of each kind that has a weight",
    )
    caption_weights: dict[Kind, float] = Field(
        {},
        description="how often captions of a kind are drawn, e.g. {dense: 0.7, short: 0.2, human: 0.1}, among those "
        "that a clip has; empty: always the first of `captions`",
    )
    vae: str = Field(
        "", description="folder of the VAE whose latents are used; empty: the newest that was trained here"
    )
    encoder: str = Field("", description="folder of the text encoder; empty: the one used last by text_features")
    model: MiniFluxConfig = MiniFluxConfig()
    mmdit: MMDiTConfig | None = Field(None, description="the SD3 variant, trained in place of `model`; null: not")
    pyramid: PyramidConfig = PyramidConfig()
    loss: DiTLossConfig = DiTLossConfig()
    text_dropout: float = Field(0.1, ge=0, lt=1, description="share of captions replaced by the empty text")
    num_val_clips: int = Field(64, ge=1, description="held-out clips that validation looks at")

    @model_validator(mode="after")
    def _check(self) -> "TrainDiTConfig":
        if any(weight < 0 for weight in self.caption_weights.values()):
            raise ValueError(f"caption_weights {self.caption_weights}: weights are 0 or more")
        columns = sum(self.loss.ratios(self.pyramid))
        if self.optim.batch_size % columns:
            raise ValueError(
                f"optim.batch_size {self.optim.batch_size} does not divide into {columns} columns (loss.sample_ratios, "
                f"or one a stage): set it to {-(-self.optim.batch_size // columns) * columns}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Trainings of before there were weights keep their identity."""
        return {name: value for name, value in dump(self).items() if name != "caption_weights" or value}

    @property
    def dit(self) -> MiniFluxConfig | MMDiTConfig:
        """The transformer that is trained."""
        return self.mmdit or self.model

    @property
    def dit_setting(self) -> str:
        """Where a recipe has it."""
        return "train_dit.mmdit" if self.mmdit else "train_dit.model"


@step
def train_dit(run: Run, config: TrainDiTConfig) -> StepResult:
    """Train a DiT, or find the one that these settings, latents and captions gave before.

    Returns:
        outputs `model_id`, `weights_hash`, `uri` and `dit` (both the folder), `vae`, `encoder`.

    Raises:
        StepError: a split has no clip with latent and caption, the model does not fit VAE or encoder, or training
            failed.
    """
    vae = find_model(run, "vae", config.vae)
    encoder = find_encoder(run, config.encoder)
    _check_channels(config, vae.uri)
    source = pair_source(run, config.selection, config.captions, vae, encoder.hash, config.caption_weights)
    train = find_pairs(source, "train")
    val = find_pairs(source, "val")[: config.num_val_clips]
    for split, pairs in (("train", train), ("val", val)):
        if not pairs:
            raise StepError(explain_no_pairs(source, split))
    null_id = text_feature_ids(source).get(NULL_TEXT, "")
    ids = [_data_ids(pair) for pair in (*train, *val)]
    job = Job(
        kind="dit",
        model_id=model_id("dit", VERSION, config, [*ids, len(train), null_id]),
        run=run,
        config=config,
        training=DiTTraining,
        arguments={"config": config, "source": source, "train": train, "val": val},
        facts={
            "versions": source.versions,
            "selection": config.selection,
            "captions": config.captions,
            "vae": vae.uri,
            "vae_hash": vae.weights_hash,
            "encoder": encoder.uri,
            "encoder_hash": encoder.hash,
            "random_init_text": encoder.random_init,
        },
    )
    result = run_training(job, "train_dit", VERSION)
    return result.model_copy(update={"outputs": result.outputs | {"vae": vae.uri, "encoder": encoder.uri}})


def _data_ids(pair: Pair) -> list[Any]:
    """What a training sees of a clip."""
    choices = [[choice.text_feature_id, choice.weight] for choice in pair.choices]
    return [pair.latent_id, pair.text_feature_id, *([choices] if choices else [])]


def _check_channels(config: TrainDiTConfig, vae_uri: str) -> None:
    channels = vae_settings(vae_uri)["encoder_out_channels"]
    if config.dit.latent_channels != channels:
        raise StepError(
            f"the VAE {vae_uri} makes {channels} latent channels and {config.dit_setting}.latent_channels is "
            f"{config.dit.latent_channels}: set it to {channels}, or name another VAE in train_dit.vae"
        )


class DiTTraining:
    """The DiT's side of a training. Every worker holds all latents and features in memory (a latent of 121 frames at
    480x704 px is 5.4 MB as float32).
    """

    def __init__(
        self,
        config: TrainDiTConfig,
        source: PairSource,
        train: list[Pair],
        val: list[Pair],
        rank: int,
        world_size: int,
        device: "device",
    ):
        self.config, self.rank, self.world_size, self.device = config, rank, world_size, device
        self.train, self.val = load_pairs(source, train), load_pairs(source, val)
        self.null = load_null_text(source)
        self.bad = [*self.train.bad, *self.val.bad]
        self.num_train, self.num_val = len(self.train.pairs), len(self.val.pairs)
        if not self.num_train or not self.num_val:
            raise StepError(
                f"every latent of a split is damaged, first: {self.bad[0]}. Restore the tables from a copy."
            )
        self.alike = positions_alike(self.train.shapes)
        self._check_text()

    def _check_text(self) -> None:
        """Refuse features that the model's text layers do not fit."""
        widths = self.null[0].shape[-1], self.null[1].shape[-1]
        dit = self.config.dit
        if widths != (dit.text_dim, dit.pooled_dim):
            raise StepError(
                f"the text encoder gives {widths[0]} values a token and {widths[1]} pooled, the DiT takes "
                f"{dit.text_dim} and {dit.pooled_dim}: set {self.config.dit_setting}.text_dim and pooled_dim "
                f"to {widths}"
            )

    def objective(self) -> "nn.Module":
        """The DiT with its loss; the same weights in every worker."""
        from pyramid_model.train.dit_loss import DiTObjective

        return DiTObjective(untrained_dit(self.config), self.config.pyramid, self.config.loss)

    def batch(self, step: int) -> "Batch":
        """This worker's latents of one shape, with their texts."""
        from pyramid_model.train.batches import dit_batch, step_generator
        from pyramid_model.train.loop import Batch

        optim = self.config.optim
        generator = step_generator(optim.seed, step, self.rank)
        indices = pick_samples(self.alike, optim.batch_size, optim.seed, step, self.rank, self.world_size)
        chance = random.Random(f"caption/{optim.seed}/{step}/{self.rank}")
        latents, text = dit_batch(
            [self.train.latents[i] for i in indices],
            [self.train.drawn_text(i, chance) for i in indices],
            self.null,
            range(len(indices)),
            generator,
            self.config.text_dropout,
        )
        args = (latents.to(self.device), text.to(self.device), generator, step, self.rank)
        return Batch(args, [self.train.pairs[i].clip_id for i in indices])

    def validate(self, objective: Any) -> dict[str, float]:
        """Loss on held-out clips, the same noise every time."""
        from tasks.dit_validation import val_losses

        return val_losses(objective.dit, self.val, self.config.pyramid, self.config.loss)

    def save(self, objective: Any, folder: str) -> None:
        """Write the DiT."""
        from pyramid_model.weights import save_dit

        save_dit(objective.dit, folder)


def untrained_dit(config: TrainDiTConfig) -> Any:
    """The DiT as it is before the first step of a training with this config."""
    import torch

    from pyramid_model.dit.miniflux import MiniFlux
    from pyramid_model.dit.mmdit import MMDiT

    torch.manual_seed(config.optim.seed)
    return MMDiT(config.mmdit) if config.mmdit else MiniFlux(config.model)
