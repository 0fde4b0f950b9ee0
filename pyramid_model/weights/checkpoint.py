"""What a released directory, or one of our own in that layout, can generate: read from its small JSON files alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pyramid_model.config import DiTConfig, LatentNorm, MMDiTConfig, PyramidConfig, VAEConfig
from pyramid_model.dit.packing import PATCH
from pyramid_model.generate.offload import largest_layer_bytes, weight_bytes
from pyramid_model.generate.plan import ModelSizes
from pyramid_model.generate.prompt import RELEASED_STYLE, TRAINED_STYLE, PromptStyle
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.weights.released import ReleasedDirectory, find_released
from pyramid_model.weights.released_names import (
    CONFIG_FILE,
    MMDIT_CLASS,
    VAE_CLASS,
    clip_shapes,
    miniflux_config_from_released,
    mmdit_config_from_released,
    t5_shapes,
    vae_config_from_released,
)
from pyramid_model.weights.tensor_files import read_json
from pyramid_model.weights.weights import empty_model, read_config
from pyramid_model.weights.weights_report import inspect_directory

TRAINING_FILE = "training.json"  # beside weights that were trained here
MAX_PROBLEMS = 3  # that a message tells
# Latent frames that the released variants were trained for. Source: the published pipeline.
MOST_LATENT_FRAMES = {"384p": 16, "768p": 31, "image": 1}


@dataclass(frozen=True)
class Checkpoint:
    """A DiT of a directory with the VAE and the text encoders that belong to it.

    name: of the DiT, such as `768p`.
    norm: of the VAE's latents, as the DiT knows them.
    most_latent_frames: how long its clips can be; None where nothing says so.
    autoregressive: whether the DiT was trained unit by unit.
    """

    parts: ReleasedDirectory
    name: str
    dit: DiTConfig
    vae: VAEConfig
    norm: LatentNorm
    pyramid: PyramidConfig
    style: PromptStyle
    most_latent_frames: int | None
    autoregressive: bool

    @property
    def dit_folder(self) -> Path:
        """Folder of the DiT's weights."""
        return self.parts.dit(self.name)

    def check(self, request: GenerationRequest) -> None:
        """Raise ValueError, naming the setting, unless this model can make this clip."""
        check_request(request, self.dit, self.vae, self.pyramid, self.most_latent_frames, self.name)

    def sizes(self, dtype: torch.dtype) -> ModelSizes:
        """What a plan of the memory needs to know of these models in a precision; none of them is loaded."""
        dit, vae = _empty(self.dit_folder, dtype), _empty(self.parts.vae, dtype)
        texts = [_text_layers(encoder) for encoder, _ in self.parts.text]
        return ModelSizes(
            dit=self.dit,
            vae=self.vae,
            pyramid=self.pyramid,
            dtype=dtype,
            text_dim=self.dit.text_dim,
            text_bytes=sum(layers.total() for layers in texts) * dtype.itemsize,
            dit_bytes=weight_bytes(dit),
            vae_bytes=weight_bytes(vae),
            text_layer_bytes=max(max(layers.values()) for layers in texts) * dtype.itemsize,
            dit_layer_bytes=largest_layer_bytes(dit),
        )


def check_request(
    request: GenerationRequest,
    dit: DiTConfig,
    vae: VAEConfig,
    pyramid: PyramidConfig,
    most_latent_frames: int | None,
    name: str = "this model",
) -> None:
    """Raise ValueError, naming the setting, unless the models can make this clip; name: of the DiT."""
    request.check(vae, pyramid)
    check_positions(dit, vae, request)
    if most_latent_frames and request.num_latent_frames > most_latent_frames:
        frames = 1 + vae.time_factor * (most_latent_frames - 1)
        raise ValueError(
            f"num_latent_frames {request.num_latent_frames}: {name} makes at most {most_latent_frames} latent frames, "
            f"which are {frames} frames. Set request.num_latent_frames, or take another variant."
        )


def read_checkpoint(folder: str | Path, variant: str = "") -> Checkpoint:
    """Describe one DiT of a directory, and all that it works with; of weights only the headers are read.

    Args:
        folder: holds `diffusion_transformer_…`, `causal_video_vae` and the text encoders.
        variant: which DiT, e.g. `768p` or `diffusion_transformer_768p`; may be left out where there is only one.

    Raises:
        FileNotFoundError: parts are missing; each is named.
        ValueError: it is another kind of folder, has no such variant, its parts do not belong together, or a file is
            damaged.
    """
    parts = find_released(Path(folder).expanduser())
    if not variant and len(parts.dits) > 1:
        raise ValueError(f"{folder} has several DiTs: choose one of {', '.join(parts.dits)} (--variant)")
    dit_folder = parts.dit(variant) if variant else next(iter(parts.dits.values()))
    name = next(name for name, path in parts.dits.items() if path == dit_folder)
    released = read_config(dit_folder)
    is_sd3 = released.get("_class_name") == MMDIT_CLASS
    dit = (mmdit_config_from_released if is_sd3 else miniflux_config_from_released)(released)
    vae = vae_config_from_released(read_config(parts.vae, (VAE_CLASS,)))
    _refuse_damage(parts, name)
    training = dit_folder / TRAINING_FILE
    trained = read_json(training) if training.exists() else None
    settings = (trained or {}).get("config", {})
    return Checkpoint(
        parts=parts,
        name=name,
        dit=dit,
        vae=vae,
        norm=vae.latent_norm or parts.latent_norm,
        pyramid=PyramidConfig.model_validate(settings.get("pyramid", {})),
        style=RELEASED_STYLE if trained is None else TRAINED_STYLE,
        most_latent_frames=MOST_LATENT_FRAMES.get(name) if trained is None else None,
        autoregressive=settings.get("loss", {}).get("autoregressive", True),
    )


def check_positions(dit: DiTConfig, vae: VAEConfig, request: GenerationRequest) -> None:
    """Raise ValueError if the picture is larger than the table of positions that an MMDiT has."""
    if not isinstance(dit, MMDiTConfig):
        return
    most = dit.position_grid * PATCH * vae.space_factor
    for name in ("height", "width"):
        px = getattr(request, name)
        if px > most:
            raise ValueError(f"{name} {px} px: this model knows positions for at most {most} px. Set request.{name}.")


def check_widths(dit: DiTConfig, vae: VAEConfig, text_dim: int, pooled_dim: int, where: str) -> None:
    """Raise ValueError unless DiT, VAE and text encoders have matching widths."""
    pairs = (
        ("latent channels", dit.latent_channels, "VAE", vae.latent_channels),
        ("text features", dit.text_dim, "T5 encoder", text_dim),
        ("pooled text features", dit.pooled_dim, "text encoder", pooled_dim),
    )
    for what, expected, maker, made in pairs:
        if expected != made:
            raise ValueError(
                f"{where}: the DiT expects {expected} {what}, the {maker} makes {made}: they are not of one model"
            )


def _refuse_damage(parts: ReleasedDirectory, name: str) -> None:
    """Raise ValueError unless all that one DiT works with is whole, by configs and headers of files."""
    report = inspect_directory(replace(parts, dits={name: parts.dits[name]}))
    problems = [*report.problems, *(f"{part.name}: {line}" for part in report.parts for line in part.problems)]
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise ValueError(
            f"{parts.folder} cannot be used: {'; '.join(problems[:MAX_PROBLEMS])}{more}. "
            f"`pyramid weights inspect {parts.folder}` tells all"
        )


def _empty(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a folder on the meta device; its parameters as they are when loaded in this precision."""
    model, _ = empty_model(read_config(folder))
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def _text_layers(encoder: Path) -> Counter[str]:
    """Numbers in each layer of a text encoder, by its config."""
    config = read_json(encoder / CONFIG_FILE)
    shapes = t5_shapes(config) if "d_model" in config else clip_shapes(config)
    layers: Counter[str] = Counter()
    for name, shape in shapes.items():
        layers[name.rpartition(".")[0]] += math.prod(shape)
    return layers
