"""Settings of training. Imports no torch, so that recipes can be checked before heavy imports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pyramid_model.config import NOT_IDENTITY, Config, DiTConfig, PyramidConfig


class OptimConfig(Config):
    """Settings of the optimiser and of the training loop."""

    num_steps: int = Field(
        default=1000, ge=1, description="optimiser steps; a training that continues another does so many more"
    )
    batch_size: int = Field(default=4, ge=1, description="samples of a batch")
    name: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: Muon (torch.optim.Muon) for the matrices of the blocks and AdamW for all other weights; "
        "both have the same lr, since Muon's updates are scaled to the size of AdamW's",
    )
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    warmup_steps: int = Field(default=50, ge=0, description="steps in which the learning rate rises linearly from 0")
    min_lr_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="learning rate of the last step, as a share of the peak; the decay is a cosine",
    )
    decay_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the steps, the last ones, in which the learning rate falls; before, it stays at the peak",
    )
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(
        default=1e-4, ge=0, description="weight decay of matrices and kernels; biases and norms have none"
    )
    grad_clip: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    max_skips: int = Field(
        default=0,
        ge=0,
        description="most steps that are skipped because loss or gradient is not finite; one more ends the training",
        json_schema_extra=NOT_IDENTITY,
    )
    ema_decay: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="decay of the exponential moving average of the weights, which is the trained model",
    )
    log_every: int = Field(
        default=10, ge=1, description="steps between points of the loss curve", json_schema_extra=NOT_IDENTITY
    )
    val_every: int = Field(
        default=0, ge=0, description="steps between validations; 0: only before the first and after the last step"
    )
    checkpoint_every: int = Field(
        default=100,
        ge=0,
        description="steps between checkpoints; 0: only after the last step",
        json_schema_extra=NOT_IDENTITY,
    )
    seed: int = Field(
        default=0, ge=0, description="seed of the initial weights and of all random draws of the training"
    )

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than num_steps {self.num_steps}")
        return self


class ParallelConfig(Config):
    """How workers divide a training among them, and how each saves memory. No setting changes what is learnt.

    Workers that share a batch are consecutive; so are workers that share a copy of the weights.
    """

    share_weights: int = Field(
        default=1,
        ge=0,
        description="workers that share one copy of weights, gradients and optimiser state (FSDP2); more workers than "
        "that hold more copies (HSDP); 0: all workers share one; 1: each worker has a copy",
    )
    share_batch: int = Field(
        default=1,
        ge=1,
        description="workers that share each batch: the tokens of a DiT (Ulysses), the frames of a VAE's clips",
    )
    checkpoint_blocks: int = Field(
        default=0,
        ge=0,
        description="activations are computed again in the backward pass for every k-th block; 1: for all; 0: for none",
    )
    compile_blocks: bool = Field(default=False, description="compile the blocks with torch.compile; needs a compiler")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="type of weights and activations in the forward and backward pass; masters are float32",
    )

    def ranks_per_copy(self, num_workers: int) -> int:
        """Number of workers that share one copy of the weights."""
        return self.share_weights or num_workers

    def batches_of_rank(self, num_batches: int, rank: int, num_ranks: int) -> list[tuple[int, float]]:
        """Index and weight of each batch of a step that a rank computes; ranks that share a batch have the same ones.

        All ranks have the same number of batches. Where the ranks do not divide the batches, some compute their last
        batch twice, the second time with the weight 0. There must be a batch for every group of ranks.
        """
        groups, group = num_ranks // self.share_batch, rank // self.share_batch
        own = range(group * num_batches // groups, (group + 1) * num_batches // groups)
        most = -(-num_batches // groups)
        return [(index, most * groups / num_batches) for index in own] + [(own[-1], 0.0)] * (most - len(own))

    def check(self, num_workers: int) -> None:
        """Check that the workers divide.

        Raises:
            ValueError: they do not divide into groups that share weights or batches.
        """
        for name, size in (("share_weights", self.ranks_per_copy(num_workers)), ("share_batch", self.share_batch)):
            if num_workers % size:
                raise ValueError(
                    f"{num_workers} workers do not divide into groups of parallel.{name} {size}: set num_workers to a "
                    f"multiple of {size}, or parallel.{name} to a divisor of {num_workers}"
                )


class VAELossConfig(Config):
    """Weights of the terms of the plain VAE loss. Frames are in [-1, 1]."""

    mse_weight: float = Field(
        default=1.0, ge=0, description="weight of the squared error, for colours and large shapes"
    )
    l1_weight: float = Field(default=0.0, ge=0, description="weight of the absolute error, for sharper edges")
    kl_weight: float = Field(
        default=1e-6, ge=0, description="weight of the KL divergence from the unit normal, per latent value"
    )


class VAEBatchConfig(Config):
    """Batches of VAE training."""

    num_frames: int = Field(
        default=17, ge=1, description="frames of a sample, 1 + a multiple of 8; a random part of a longer clip"
    )
    crop: int | None = Field(
        default=None, ge=8, multiple_of=8, description="side in px of a random square crop; null: whole frames"
    )
    image_steps: int = Field(
        default=0,
        ge=0,
        description="number of steps at the start that train on single frames only, which are much faster",
    )
    image_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of the later steps that train on single frames, at equal distances"
    )
    image_batch_size: int = Field(default=8, ge=1, description="single frames of a batch")

    def at(self, step: int, batch_size: int) -> tuple[int, int]:
        """(samples, frames per sample) of a step; batch_size: samples of a step on video."""
        later = step - self.image_steps
        on_images = later < 0 or int((later + 1) * self.image_share) > int(later * self.image_share)
        return (self.image_batch_size, 1) if on_images else (batch_size, self.num_frames)


class MixConfig(Config):
    """Mixture of clips of different sizes and sources. All clips of a step have one size."""

    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="latent tokens of a batch of clips that need the most FLOPs; batches of other clips get as many "
        "samples as take the same time; null: batch_size samples",
    )
    source_weights: dict[str, float] = Field(
        default={}, description="weight of each source in the samples; {}: proportional to its number of clips"
    )
    image_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the steps that train on single frames; null: proportional to their number",
    )

    @model_validator(mode="after")
    def _check(self) -> MixConfig:
        weights = self.source_weights.values()
        if any(weight < 0 for weight in weights) or (self.source_weights and not sum(weights)):
            raise ValueError(
                f"mix.source_weights {self.source_weights}: weights must not be negative, and at least one must be "
                "more than 0"
            )
        return self


class DiTLossConfig(Config):
    """Loss of the DiT."""

    sample_ratios: tuple[int, ...] = Field(
        default=(), description="ratio of the samples of each stage, coarse to fine, e.g. [1, 2, 1]; empty: equal"
    )
    autoregressive: bool = Field(
        default=True, description="train one unit at a time, conditioned on the earlier ones; false: all frames at once"
    )

    packed_units: int | None = Field(
        default=None,
        ge=1,
        description="most units of a clip that a step trains, drawn at random, if the model's history_time is clean: "
        "such a model trains all units of a clip in one sequence, which needs memory; null: all",
    )

    def packs(self, dit: DiTConfig) -> bool:
        """Whether a step trains several units of a clip in one sequence (`flow.packed`)."""
        return self.autoregressive and dit.causal and dit.clean_history

    def ratios(self, pyramid: PyramidConfig) -> tuple[int, ...]:
        """Number of columns of each stage, coarse to fine."""
        return self.sample_ratios or (1,) * pyramid.num_stages
