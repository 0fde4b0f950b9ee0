"""Settings of training. No torch in here: recipes are read and checked before anything heavy is imported."""

from __future__ import annotations

from pydantic import Field, model_validator

from pyramid_model.config import Config, PyramidConfig


class OptimConfig(Config):
    """How a model is optimised. A step sees `batch_size` samples on every worker."""

    num_steps: int = Field(1000, ge=1)
    batch_size: int = Field(4, ge=1, description="samples a worker and step")
    lr: float = Field(1e-4, gt=0, description="learning rate at its peak")
    warmup_steps: int = Field(50, ge=0, description="linear rise of the learning rate from 0")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="learning rate of the last step over the peak; cosine")
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(1e-4, ge=0, description="on matrices and kernels; never on biases and norms")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the averaged weights, which are the ones that are kept")
    log_every: int = Field(10, ge=1, description="steps between rows of the curve")
    val_every: int = Field(0, ge=0, description="steps between validations; 0: before the first and after the last")
    checkpoint_every: int = Field(100, ge=0, description="steps between checkpoints; 0: after the last one only")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than num_steps {self.num_steps}")
        return self


class VAELossConfig(Config):
    """Weights of the parts of the loss. Frames are in [-1, 1]."""

    mse_weight: float = Field(1.0, ge=0, description="squared error: colours and large shapes")
    l1_weight: float = Field(0.0, ge=0, description="absolute error: sharper edges")
    kl_weight: float = Field(1e-6, ge=0, description="pull of the latents to the unit normal, a latent value")


class VAEBatchConfig(Config):
    """What a training step of the VAE sees."""

    num_frames: int = Field(17, ge=1, description="frames of a training cut, 1 + 8k; cut at random from longer clips")
    crop: int | None = Field(None, ge=8, multiple_of=8, description="px, side of a random square; empty: whole frames")
    image_steps: int = Field(0, ge=0, description="first steps, which see still frames only: many more for the time")
    image_batch_size: int = Field(8, ge=1, description="still frames a worker and step")

    def at(self, step: int, batch_size: int) -> tuple[int, int]:
        """Samples and frames a sample of a step; `batch_size` is that of the steps on video."""
        return (self.image_batch_size, 1) if step < self.image_steps else (batch_size, self.num_frames)


class MixConfig(Config):
    """How clips of many sizes and sources are mixed: every step has one size, every sample comes once an epoch."""

    token_budget: int | None = Field(
        None, ge=1, description="latent tokens a worker and step, whatever the size of its clips; empty: batch_size"
    )
    source_weights: dict[str, float] = Field({}, description="share of the samples by source; {}: by their number")
    image_share: float | None = Field(
        None, ge=0, le=1, description="share of the steps that see single frames; empty: by their number"
    )

    @model_validator(mode="after")
    def _check(self) -> MixConfig:
        weights = self.source_weights.values()
        if any(weight < 0 for weight in weights) or (self.source_weights and not sum(weights)):
            raise ValueError(f"mix.source_weights {self.source_weights}: none below 0, and one above it")
        return self


class DiTLossConfig(Config):
    """What a training step of the DiT is made of."""

    sample_ratios: tuple[int, ...] = Field(
        (), description="samples of each stage, coarse to fine, e.g. [1, 2, 1]; empty: the same of all"
    )
    autoregressive: bool = Field(True, description="one unit after the other, given the earlier ones; else all at once")

    def ratios(self, pyramid: PyramidConfig) -> tuple[int, ...]:
        """Columns a stage."""
        return self.sample_ratios or (1,) * pyramid.num_stages
