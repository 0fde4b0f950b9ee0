"""Configs of the models, with the released sizes as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from torch import Tensor

PerChannel = float | tuple[float, ...]
PATCH = 2  # latent height and width of a token
ENCODER_FILE = "encoder.json"  # in the folder of a text encoder that was built here: how it was built
NULL_TEXT = ""  # the caption of samples without text, which guidance pushes away from


class Config(BaseModel):
    """Base of every config: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# For `Field(json_schema_extra=NOT_IDENTITY)`: a setting that changes how or where a result is computed, but not the
# result; or a name of something whose hash is part of the id.
NOT_IDENTITY: dict[str, Any] = {"identity": False}


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide the result, as JSON for hashes: all but those marked NOT_IDENTITY, at any depth."""
    return _without_marked(config, config.model_dump(mode="json"))


def is_identity(field: FieldInfo) -> bool:
    """Whether a setting decides the result: whether it is not marked NOT_IDENTITY."""
    marks = field.json_schema_extra
    return not isinstance(marks, dict) or marks.get("identity") is not False


def _without_marked(value: Any, dumped: Any) -> Any:
    """`dumped` without the settings marked NOT_IDENTITY. dumped: JSON of `value`."""
    if isinstance(value, Config):
        fields = type(value).model_fields
        names = [name for name in fields if is_identity(fields[name])]
        return {name: _without_marked(getattr(value, name), dumped[name]) for name in names}
    if isinstance(value, Mapping):
        return {key: _without_marked(inner, dumped[key]) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_marked(inner, json_value) for inner, json_value in zip(value, dumped, strict=True)]
    return dumped


Kind = Literal["human", "short", "dense", "structured", "rewritten"]  # of captions


class CaptionsOfKind(Config):
    """The captions of one kind that are used. Several in order, the preferred one first, say which captions count."""

    kind: Kind
    hashes: tuple[str, ...] | None = Field(
        default=None,
        description="of the settings and files that determine the captions (`captions.prompt_hash`); null: the newest "
        "caption of each clip, whatever determined it",
    )


class LatentNorm(Config):
    """Shift and scale to about zero mean and unit variance: normalised = (latent - shift) * scale.

    The first latent frame of a clip is encoded without a past, so its statistics differ from those of later frames.
    Each value is one number for all latent channels, or one number per channel.
    """

    first_shift: PerChannel
    first_scale: PerChannel
    rest_shift: PerChannel
    rest_scale: PerChannel

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents of the VAE -> input of the DiT; both (b c t h w), a new tensor."""
        shift, scale = self._by_frame(latents)
        return ((latents - shift) * scale).to(latents.dtype)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverse of `normalise`; (b c t h w), a new tensor."""
        shift, scale = self._by_frame(latents)
        return (latents / scale + shift).to(latents.dtype)

    def _by_frame(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, scale), (1 c t 1 1) each, at least float32; c = 1 if there is one number for all channels."""
        exact = latents[:0] if latents.element_size() > 2 else latents[:0].float()

        def spread(first: PerChannel, rest: PerChannel) -> Tensor:
            first_column, rest_column = (exact.new_tensor(v).reshape(-1, 1) for v in (first, rest))
            frame = exact.new_tensor(range(latents.shape[2]))
            return (first_column * (frame == 0) + rest_column * (frame > 0))[None, :, :, None, None]

        return spread(self.first_shift, self.rest_shift), spread(self.first_scale, self.rest_scale)


MINIFLUX_LATENT_NORM = LatentNorm(first_shift=-0.04, first_scale=1 / 1.8726, rest_shift=-0.2343, rest_scale=1 / 3.0986)
SD3_LATENT_NORM = LatentNorm(first_shift=0.1490, first_scale=1 / 1.8415, rest_shift=-0.2343, rest_scale=1 / 3.0986)


class VAEStackConfig(Config):
    """Encoder or decoder of the VAE: a sequence of blocks, from pixels (encoder) or from latents (decoder) on."""

    channels: tuple[int, ...] = Field(
        default=(128, 256, 512, 512), description="channels of each block, from the pixel side"
    )
    layers: tuple[int, ...] = Field(
        description="residual layers of each block, in the order of computation; 0: the block only resamples"
    )
    norm_groups: int = Field(default=32, ge=1, description="groups of every group norm; must divide all channel counts")
    resample_space: tuple[bool, ...] = Field(
        default=(True, True, True, False),
        description="for each block, whether it halves (encoder) or doubles (decoder) h and w",
    )
    resample_time: tuple[bool, ...] = Field(
        default=(True, True, True, False),
        description="for each block, whether it halves (encoder) or doubles (decoder) t",
    )

    @model_validator(mode="after")
    def _check(self) -> VAEStackConfig:
        lengths = {name: len(getattr(self, name)) for name in ("channels", "layers", "resample_space", "resample_time")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the lists differ in length, {lengths}: give each of them one entry per block")
        uneven = [c for c in self.channels if c % self.norm_groups]
        if uneven:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide channels {uneven}")
        return self


class VAEConfig(Config):
    """The causal video VAE. Defaults are the released model (335 M parameters)."""

    latent_channels: int = Field(default=16, ge=1)
    encoder: VAEStackConfig = VAEStackConfig(layers=(2, 2, 2, 2))
    decoder: VAEStackConfig = VAEStackConfig(layers=(3, 3, 3, 3))
    latent_norm: LatentNorm | None = Field(
        default=None, description="shift and scale of the latents, measured after training; needed to train a DiT"
    )

    @model_validator(mode="after")
    def _check(self) -> VAEConfig:
        for name in ("resample_space", "resample_time"):
            down, up = sum(getattr(self.encoder, name)), sum(getattr(self.decoder, name))
            if down != up:
                raise ValueError(f"{name}: the encoder halves {down} times but the decoder doubles {up} times")
        for half, channels, layers in (
            ("encoder", self.encoder.channels, self.encoder.layers),
            ("decoder", self.decoder.channels[::-1], self.decoder.layers),
        ):
            for i, (before, after) in enumerate(zip((channels[0], *channels), channels, strict=False)):
                if layers[i] == 0 and before != after:
                    raise ValueError(
                        f"{half} block {i} has no layers to go from {before} to {after} channels: "
                        "give it at least one, or the channels of the block before"
                    )
        return self

    @property
    def space_factor(self) -> int:
        """Pixels per latent, along height and along width (8 as released)."""
        return 2 ** sum(self.encoder.resample_space)

    @property
    def time_factor(self) -> int:
        """Frames per latent frame after the first one (8 as released)."""
        return 2 ** sum(self.encoder.resample_time)

    def whole_frames(self, num_frames: int) -> int:
        """The greatest number of frames, at most `num_frames`, that is 1 + a multiple of `time_factor`."""
        return num_frames - (num_frames - 1) % self.time_factor


class DiTConfig(Config):
    """Settings that all diffusion transformers share."""

    latent_channels: int = Field(default=16, ge=1)
    num_heads: int = Field(ge=1)
    head_dim: int = Field(default=64, ge=2)
    text_dim: int = Field(default=4096, ge=1, description="width of the text encoder's output (T5-XXL: 4096)")
    pooled_dim: int = Field(ge=1, description="width of the pooled text vector")
    causal: bool = Field(default=True, description="a frame attends to itself and earlier frames only")
    history_time: Literal["shared", "clean"] = Field(
        default="shared",
        description="timestep of text and history. shared: that of the noisy clip, as released; clean: always 0, so "
        "their keys and values are computed once in each stage instead of at every step",
    )

    @property
    def clean_history(self) -> bool:
        """Whether text and history have a timestep of their own."""
        return self.history_time == "clean"

    @property
    def dim(self) -> int:
        """Width of the token stream."""
        return self.num_heads * self.head_dim


class LPIPSConfig(Config):
    """Files of LPIPS, which the user provides."""

    network: Literal["vgg16", "alexnet"] = Field(default="vgg16", description="network whose features are compared")
    files: tuple[str, ...] = Field(
        min_length=1,
        max_length=2,
        description="weights of the network (torchvision's) and of LPIPS (`vgg.pth` or `alex.pth` of its authors), or "
        "one .npz file with those of AlexNet and LPIPS",
        json_schema_extra=NOT_IDENTITY,
    )


class VAEGANConfig(Config):
    """The published VAE loss: weights of its terms, and the discriminator. Frames are in [-1, 1]."""

    pixel_weight: float = Field(default=10.0, ge=0, description="weight of the squared error")
    perceptual_weight: float = Field(default=1.0, ge=0, description="weight of LPIPS; 0: LPIPS is not needed")
    lpips: LPIPSConfig | None = Field(default=None, description="files of LPIPS; needed if perceptual_weight is not 0")
    logvar: float = Field(default=0.0, description="log variance of the reconstruction; not trained")
    kl_weight: float = Field(
        default=1e-12, ge=0, description="weight of the KL divergence from the unit normal, per latent channel"
    )
    adversarial_weight: float = Field(
        default=0.5, ge=0, description="weight of the adversarial loss, relative to the gradient of the reconstruction"
    )
    adversarial_start: int = Field(default=250_000, ge=0, description="step at which the adversarial loss starts")
    discriminator_layers: int = Field(default=4, ge=1, le=6, description="strided layers of the PatchGAN")
    discriminator_channels: int = Field(default=64, ge=1, description="channels of its first layer")
    discriminator_lr_scale: float = Field(
        default=1.0, gt=0, description="learning rate of the discriminator as a multiple of that of the VAE"
    )

    @property
    def smallest_side(self) -> int:
        """Least height and width in px of frames that the discriminator can judge."""
        return 3 * 2**self.discriminator_layers


class MiniFluxConfig(DiTConfig):
    """The miniFLUX diffusion transformer. Defaults are the released model (1.97 G parameters)."""

    num_heads: int = Field(default=30, ge=1)
    pooled_dim: int = Field(default=768, ge=1, description="width of the pooled text vector (CLIP-L: 768)")
    num_double_blocks: int = Field(
        default=8, ge=0, description="blocks with separate weights for image and text tokens"
    )
    num_single_blocks: int = Field(
        default=16, ge=0, description="blocks on the joined sequence of text and image tokens"
    )
    rope_axes: tuple[int, int, int] = Field(
        default=(16, 24, 24), description="channels of each head for the rotary positions of t, h and w"
    )

    @model_validator(mode="after")
    def _check(self) -> MiniFluxConfig:
        if sum(self.rope_axes) != self.head_dim or any(axis % 2 for axis in self.rope_axes):
            raise ValueError(f"rope_axes {self.rope_axes} must be even numbers that add up to head_dim {self.head_dim}")
        return self


class MMDiTConfig(DiTConfig):
    """The MMDiT diffusion transformer, the SD3 variant. Defaults are the released model (2.03 G parameters)."""

    num_heads: int = Field(default=24, ge=1)
    pooled_dim: int = Field(
        default=2048, ge=1, description="width of the pooled text vector (CLIP-L and CLIP-G: 768 + 1280)"
    )
    num_blocks: int = Field(default=24, ge=1, description="blocks with separate weights for image and text tokens")
    position_grid: int = Field(
        default=192, ge=1, description="side of the position table, in patches; larger pictures are not possible"
    )
    position_base: int = Field(
        default=64, ge=1, description="largest position along a side of the table; the smallest is 0"
    )

    @model_validator(mode="after")
    def _check(self) -> MMDiTConfig:
        if self.head_dim % 2 or self.dim % 4:
            raise ValueError(
                f"num_heads {self.num_heads} * head_dim {self.head_dim}: head_dim must be even and the product a "
                "multiple of 4 (sines and cosines of two axes)"
            )
        return self


class PyramidConfig(Config):
    """Resolutions (stages) and units of time of a clip."""

    num_stages: int = Field(
        default=3, ge=1, le=4, description="number of resolutions, from coarse to fine; each doubles h and w"
    )
    stage_bounds: tuple[float, ...] | None = Field(
        default=None, description="boundaries of the stages on the path, increasing from 0 to 1; empty: equal parts"
    )
    gamma: float = Field(default=1 / 3, gt=0, le=1 / 3, description="negative correlation of the noise added at a jump")
    shift: float = Field(
        default=1.0, gt=0, description="shift of the noise schedule; above 1, more steps are at high noise"
    )
    frames_per_unit: int = Field(
        default=1, ge=1, description="latent frames of each unit after the first one, which has one frame"
    )
    corrupt_ratio: float = Field(
        default=1 / 3, ge=0, le=1, description="largest share of noise that training adds to the history"
    )
    corrupt_blur: float = Field(
        default=0.0, ge=0, le=1, description="largest share of blur (half the resolution) of the history in training"
    )
    corrupt_contrast: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="the contrast of the latents of the history is changed by up to this share in training, both ways",
    )

    @model_validator(mode="after")
    def _check(self) -> PyramidConfig:
        bounds = self.bounds
        if len(bounds) != self.num_stages + 1 or bounds[0] != 0 or bounds[-1] != 1 or list(bounds) != sorted(bounds):
            raise ValueError(
                f"stage_bounds {bounds} do not fit num_stages {self.num_stages}: need {self.num_stages + 1} rising "
                "numbers from 0 to 1"
            )
        return self

    @property
    def bounds(self) -> tuple[float, ...]:
        """Boundaries of the stages on the unshifted path: num_stages + 1 numbers from 0 (noise) to 1 (data)."""
        return self.stage_bounds or tuple(i / self.num_stages for i in range(self.num_stages + 1))


class LoRAConfig(Config):
    """A LoRA adapter (arXiv:2106.09685): low-rank updates of linear layers, which alone are trained."""

    rank: int = Field(default=16, ge=1, description="rank of the updates")
    alpha: float | None = Field(
        default=None, gt=0, description="the update is scaled by alpha / rank; null: alpha is the rank, the scale is 1"
    )
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out", "fc1", "fc2", "mlp_in", "out"),
        description="layers of the blocks that have one: attention and MLP; `modulation` adds those of the timestep",
    )


class UsedLoRA(Config):
    """An adapter that generation adds to the DiT."""

    folder: str = Field(description="folder with adapter_config.json and adapter_model.safetensors")
    weight: float = Field(default=1.0, ge=-10, le=10, description="multiple of the adapter that is added")
