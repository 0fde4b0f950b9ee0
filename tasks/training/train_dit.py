"""Training of the diffusion transformer on latents and text features."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from pyramid_model.config import (
    NOT_IDENTITY,
    NULL_TEXT,
    CaptionsOfKind,
    Kind,
    LoRAConfig,
    MiniFluxConfig,
    MMDiTConfig,
    PyramidConfig,
)
from pyramid_model.train.config import DiTLossConfig, MixConfig, OptimConfig
from pyramid_model.weights.record import TrainedOn
from tasks.models.encoders import find_encoder
from tasks.models.folders import find_model, vae_config
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.running.step import step
from tasks.training.dit_weights import initial_model, save_trained_dit, untrained_dit
from tasks.training.job import Job, TrainingConfig, TrainingResult, check_disjoint
from tasks.training.line import identify
from tasks.training.pair_columns import Pair, Pairs
from tasks.training.pairs import (
    PairReader,
    PairSource,
    explain_no_pairs,
    find_pairs,
    load_null_text,
    load_pairs,
    pair_source,
    sources_of,
    text_feature_ids,
)
from tasks.training.training import run_training

if TYPE_CHECKING:
    from torch import Tensor, device

    from pyramid_model.dit.transformer import DiT
    from pyramid_model.train.dit_loss import DiTObjective
    from pyramid_model.train.loop import Batch
    from pyramid_model.train.mixture import BatchPlan

VERSION = "4"


class DiTOptimConfig(OptimConfig):
    """Optimiser settings of the DiT."""

    batch_size: int = Field(
        default=6, ge=1, description="samples of a batch; a multiple of the number of columns (one for each stage)"
    )


class TrainDiTConfig(TrainingConfig):
    """Sizes and training of the DiT."""

    # a narrower class than the base's, which a frozen config allows
    optim: DiTOptimConfig = DiTOptimConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    captions: tuple[CaptionsOfKind, ...] = Field(
        default=(),
        description="captions to use, the preferred kind first, e.g. [{kind: dense}, {kind: short}]; empty: the newest "
        "of each clip, or of each kind that has a weight",
        json_schema_extra=NOT_IDENTITY,
    )
    caption_weights: dict[Kind, float] = Field(
        default={},
        description="weights by which a caption is drawn from the kinds that a clip has, e.g. {dense: 0.7, short: 0.2, "
        "human: 0.1}; empty: always the first kind of `captions`",
    )
    vae: str = Field(
        default="",
        description="folder of the VAE whose latents are used; empty: the newest trained in this root",
        json_schema_extra=NOT_IDENTITY,
    )
    encoder: str = Field(
        default="",
        description="folder of the text encoder; empty: the one that text_features used last",
        json_schema_extra=NOT_IDENTITY,
    )
    model: MiniFluxConfig = MiniFluxConfig()
    mmdit: MMDiTConfig | None = Field(
        default=None,
        description="sizes of an MMDiT, the SD3 variant, to train in place of `model`; null: train `model`",
    )
    init_from: str = Field(
        default="",
        description="folder of a DiT, released or trained here, whose weights the training starts from; its sizes must "
        "be those of `model` or `mmdit`. Empty: random weights",
        json_schema_extra=NOT_IDENTITY,
    )
    lora: LoRAConfig | None = Field(
        default=None,
        description="train a LoRA adapter on the DiT of init_from, and nothing else; null: train all weights",
    )
    pyramid: PyramidConfig = PyramidConfig()
    loss: DiTLossConfig = DiTLossConfig()
    text_dropout: float = Field(default=0.1, ge=0, lt=1, description="share of captions replaced by the empty text")
    num_val_clips: int = Field(default=64, ge=1, description="held-out clips for validation")
    mix: MixConfig = MixConfig()
    sample_posterior: Literal[True] | None = Field(
        default=None,
        description="true: sample latents from the posterior (needs latents.parts mean,logvar); null: use its mean",
    )
    sync_group: int | None = Field(
        default=None,
        ge=2,
        description="consecutive batches of a step that have the same clips and train different units; null: 1",
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainDiTConfig":
        if any(weight < 0 for weight in self.caption_weights.values()):
            raise ValueError(f"caption_weights {self.caption_weights}: weights are 0 or more")
        if self.optim.batch_size % self.columns:
            raise ValueError(
                f"optim.batch_size {self.optim.batch_size} does not divide into {self.columns} columns "
                "(loss.sample_ratios, or one per stage): set it to "
                f"{-(-self.optim.batch_size // self.columns) * self.columns}"
            )
        if self.lora and not self.init_from:
            raise ValueError("lora changes a DiT that exists: set train_dit.init_from to its folder")
        if self.sync_group and self.num_batches % self.sync_group:
            raise ValueError(
                f"num_batches {self.num_batches} does not divide into groups of sync_group {self.sync_group}: set one "
                "of them so that it does"
            )
        if self.sync_group and self.dit.clean_history and self.loss.autoregressive:
            raise ValueError(
                f"sync_group {self.sync_group}: a model whose history_time is clean trains all units of a clip in one "
                "sequence, so no batches need to share clips: set sync_group to null"
            )
        if self.dit.num_heads % self.parallel.share_batch:
            raise ValueError(
                f"parallel.share_batch {self.parallel.share_batch} does not divide the {self.dit.num_heads} heads of "
                f"{self.dit_setting}: set it to a divisor of {self.dit.num_heads}"
            )
        return self

    @property
    def columns(self) -> int:
        """Number of columns of a batch. A column has one sample of each stage; batch_size must be a multiple."""
        return sum(self.loss.ratios(self.pyramid))

    @property
    def dit(self) -> MiniFluxConfig | MMDiTConfig:
        """The transformer that is trained."""
        return self.mmdit or self.model

    def untrained(self, with_lora: bool = True) -> "DiT":
        """The DiT before the first step, with its new adapter if it gets one and `with_lora`."""
        return untrained_dit(self.dit, self.optim.seed, self.init_from, self.lora if with_lora else None)

    @property
    def dit_setting(self) -> str:
        """Dotted name of its section in a recipe."""
        return "train_dit.mmdit" if self.mmdit else "train_dit.model"


class TrainDiTResult(TrainingResult):
    """The trained DiT, and the VAE and text encoder of its data."""

    vae: str = Field(description="folder of the VAE that made the latents")
    encoder: str = Field(description="folder of the text encoder that made the text features")


@step
def train_dit(run: Run, config: TrainDiTConfig) -> TrainDiTResult:
    """Train a DiT, or return the existing model for the same settings, latents and captions.

    Raises:
        StepError: a split has no clip with latent and caption, the model does not fit VAE or encoder, there is no
            training to continue, or training failed.
    """
    vae = find_model(run, "vae", config.vae)
    encoder = find_encoder(run, config.encoder)
    _check_channels(config, vae.uri)
    if init := initial_model(run, config.init_from, config.dit, config.dit_setting):
        config = config.model_copy(update={"init_from": init.uri})  # workers have other working directories
    sampled, weights = bool(config.sample_posterior), config.caption_weights
    source = pair_source(run, config.selection, config.captions, vae, encoder.hash, weights, sampled)
    train = find_pairs(source, "train", views=True)
    val = find_pairs(source, "val")[: config.num_val_clips]
    for split, pairs in (("train", train), ("val", val)):
        if not pairs:
            raise StepError(explain_no_pairs(source, split))
    check_disjoint(train.column("clip_id").to_pylist(), val.column("clip_id").to_pylist())
    names = sources_of(source, train) if config.mix.source_weights else []
    null_id = text_feature_ids(source).get(NULL_TEXT, "")
    ids = [_data_ids(pair) for pair in (*train, *val)]
    trained_on = TrainedOn(
        selection=config.selection,
        captions=config.captions,
        versions=source.versions,
        vae=vae,
        encoder=encoder,
        init=init,
        latent_norm=source.norm,
    )
    data_ids = [*ids, len(train), null_id]
    job = Job(
        kind="dit",
        ids=identify(run, "dit", VERSION, config, config.continue_from, trained_on, data_ids),
        run=run,
        config=config,
        training=partial(DiTTraining, config=config, source=source, train=train, val=val, names=names),
        trained_on=trained_on,
    )
    return TrainDiTResult(**dict(run_training(job, "train_dit", VERSION)), vae=vae.uri, encoder=encoder.uri)


def _data_ids(pair: Pair) -> list[object]:
    """Ids of the data that a training reads for a clip."""
    choices = [[choice.text_feature_id, choice.weight] for choice in pair.choices]
    return [pair.latent_id, pair.text_feature_id, *([choices] if choices else [])]


def _check_channels(config: TrainDiTConfig, vae_uri: str) -> None:
    channels = vae_config(vae_uri).latent_channels
    if config.dit.latent_channels != channels:
        raise StepError(
            f"the VAE {vae_uri} makes {channels} latent channels and {config.dit_setting}.latent_channels is "
            f"{config.dit.latent_channels}: set it to {channels}, or name another VAE in train_dit.vae"
        )


class DiTTraining:
    """The DiT's part of a training. Latents and text features are read from the tables when a step needs them."""

    def __init__(
        self,
        config: TrainDiTConfig,
        source: PairSource,
        train: Pairs,
        val: Pairs,
        names: list[str],
        device: "device",
    ):
        self.config, self.source, self.device = config, source, device
        self.train, self.val = PairReader(source, train), load_pairs(source, val)
        self.null = load_null_text(source)
        self.num_train, self.num_val = len(self.train.pairs), len(self.val.pairs)
        if not self.num_train or not self.num_val:
            raise StepError(f"no latent of a split can be read ({', '.join(self.bad) or 'their rows are missing'})")
        self.selected = Counter(train.column("bucket").to_pylist())
        self.sync_group = config.sync_group or 1
        self.plan = self._plan(dict(zip(train.column("clip_id").to_pylist(), names, strict=True)) if names else {})
        self._check_text()

    def _plan(self, names: dict[str, str]) -> "BatchPlan":
        from pyramid_model.train.flops import sample_flops
        from pyramid_model.train.mixture import BatchPlan

        config = self.config
        sources = [names.get(clip_id, "") for clip_id in self.train.pairs.column("clip_id").to_pylist()]
        batch = config.optim.batch_size, config.columns, config.optim.seed, config.num_batches // self.sync_group
        sizes = config.dit, config.pyramid, config.loss
        cost = partial(sample_flops, *sizes, num_text=self.null[0].shape[0])
        try:
            return BatchPlan(self.train.shapes, sources, config.mix, *batch, cost)
        except ValueError as err:
            raise StepError(f"train_dit.{err}") from err

    @property
    def bad(self) -> list[str]:
        """Pairs that could not be read so far."""
        return [*self.train.bad, *self.val.bad]

    def describe(self) -> list[str]:
        """See `BatchPlan.describe`."""
        buckets = self.train.pairs.column("bucket").to_pylist()
        return self.plan.describe(buckets, self.selected, self.config.optim.num_steps)

    def _check_text(self) -> None:
        """Check that the widths of the text features fit the model."""
        widths = self.null[0].shape[-1], self.null[1].shape[-1]
        dit = self.config.dit
        if widths != (dit.text_dim, dit.pooled_dim):
            raise StepError(
                f"the text encoder gives {widths[0]} values per token and {widths[1]} pooled, the DiT takes "
                f"{dit.text_dim} and {dit.pooled_dim}: set {self.config.dit_setting}.text_dim and pooled_dim "
                f"to {widths}"
            )

    def objective(self) -> "DiTObjective":
        """The DiT with its loss; the same weights in every worker."""
        from pyramid_model.train.dit_loss import DiTObjective

        longest = max(shape[1] for shape in self.train.shapes)
        sizes = self.config.pyramid, self.config.loss, self.sync_group, longest
        return DiTObjective(self.config.untrained(), *sizes)

    def initialise(self, objective: "DiTObjective") -> None:
        """A DiT starts with the weights that `untrained_dit` gives it."""

    def probe(self, objective: "DiTObjective") -> None:
        """See `probe_dit`."""
        from pyramid_model.train.causality import probe_dit

        probe_dit(objective.dit)

    def batch(self, step: int, index: int) -> "Batch":
        """Latents of one shape, with their texts."""
        # The batches of a sync group have the same clips, as if they were one batch.
        return self._batch_of(self.plan.pick(step, index // self.sync_group), step, index)

    def largest(self) -> "tuple[str, Batch]":
        """The batch with the most tokens, with its bucket.

        Its finest stage trains the last unit, which has the longest history.
        """
        from pyramid_model.flow.path import units_in

        positions = self.plan.largest()
        units = units_in(self.train.shapes[positions[0]][1], self.config.pyramid.frames_per_unit)
        batch = self._batch_of(positions, max(1, units // self.sync_group) - 1, self.sync_group - 1)
        return self.train.pairs[positions[0]].bucket, batch

    def _batch_of(self, positions: Sequence[int], step: int, index: int) -> "Batch":
        from pyramid_model.train.batches import dit_batch, step_generator
        from pyramid_model.train.loop import Batch
        from pyramid_model.vae.posterior import Posterior

        generator = step_generator(self.config.optim.seed, step, index)
        chance = random.Random(f"caption/{self.config.optim.seed}/{step}/{index}")
        samples = [self._readable(position, chance) for position in positions]
        raw, text = dit_batch(
            [latent for _, latent, _ in samples],
            [(embeds.float(), pooled.float()) for _, _, (embeds, pooled) in samples],
            self.null,
            range(len(samples)),
            generator,
            self.config.text_dropout,
        )
        raw = raw.to(self.device).float()
        if self.config.sample_posterior:
            raw = Posterior.from_moments(raw).sample(generator)
        latents = self.source.norm.normalise(raw)
        args = (latents, text.to(self.device), generator, step, index)
        return Batch(args, [self.train.pairs[position].clip_id for position, _, _ in samples])

    def _readable(self, position: int, chance: random.Random) -> "tuple[int, Tensor, tuple[Tensor, Tensor]]":
        """A sample with its position. A damaged one is replaced by the next of its shape that can be read."""
        if readable := self.plan.readable(position, lambda candidate: self.train.read(candidate, chance)):
            return readable[0], *readable[1]
        raise StepError(
            f"every latent of a size is damaged, first: {self.train.bad[0]}. Restore the tables from a copy, or run "
            "the steps latents and text_features with --retry-failed after removing the damaged rows"
        )

    def validate(self, objective: "DiTObjective") -> dict[str, float]:
        """Loss on held-out clips, with the same noise at every call."""
        from tasks.training.validation import val_losses

        return val_losses(objective.dit, self.val, self.config.pyramid, self.config.loss)

    def baselines(self, objective: "DiTObjective") -> dict[str, float]:
        """See `val_baselines` and `rollout_curve`."""
        from tasks.training.validation import rollout_curve, val_baselines

        config, dit = self.config, objective.dit
        figures = val_baselines(dit, self.source, self.train.pairs, self.val, config.pyramid, config.loss)
        return figures | (rollout_curve(dit, self.val, config.pyramid) if config.loss.autoregressive else {})

    def save(self, objective: "DiTObjective", folder: str) -> None:
        """See `save_trained_dit`."""
        save_trained_dit(objective.dit, folder, self.config.init_from, self.config.lora)
