"""What a directory of released layout holds, read from its small JSON files alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyramid_model.config import (
    MINIFLUX_LATENT_NORM,
    SD3_LATENT_NORM,
    DiTConfig,
    LatentNorm,
    PyramidConfig,
    VAEConfig,
)
from pyramid_model.generate.prompt import RELEASED_STYLE, TRAINED_STYLE, PromptStyle
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.text import released_text_parts
from pyramid_model.weights import (
    MMDIT_CLASS,
    miniflux_config_from_released,
    mmdit_config_from_released,
    vae_config_from_released,
)

VAE_FOLDER = "causal_video_vae"
DIT_PREFIX = "diffusion_transformer"
TRAINING_FILE = "training.json"  # beside weights that were trained here
# Latent frames that the released variants were trained for. Source: the published pipeline.
MOST_LATENT_FRAMES = {f"{DIT_PREFIX}_384p": 16, f"{DIT_PREFIX}_768p": 31, f"{DIT_PREFIX}_image": 1}


@dataclass(frozen=True)
class Checkpoint:
    """A DiT of a directory with the VAE and the text encoders that belong to it.

    dit_folder, vae_folder: where their weights are; the text encoders are in `folder` itself.
    norm: of the VAE's latents, as the DiT knows them.
    most_latent_frames: how long its clips can be; None where nothing says so.
    """

    folder: Path
    variant: str
    dit: DiTConfig
    vae: VAEConfig
    norm: LatentNorm
    pyramid: PyramidConfig
    style: PromptStyle
    most_latent_frames: int | None

    @property
    def dit_folder(self) -> Path:
        """Folder of the DiT's weights."""
        return self.folder / self.variant

    @property
    def vae_folder(self) -> Path:
        """Folder of the VAE's weights."""
        return self.folder / VAE_FOLDER

    def check(self, request: GenerationRequest) -> None:
        """Raise ValueError, naming the setting, unless this model can make this clip."""
        request.check(self.vae, self.pyramid)
        most = self.most_latent_frames
        if most and request.num_latent_frames > most:
            frames = 1 + self.vae.time_factor * (most - 1)
            raise ValueError(
                f"num_latent_frames {request.num_latent_frames}: {self.variant} makes at most {most} latent frames, "
                f"which are {frames} frames. Set request.num_latent_frames, or take another variant."
            )


def variants(folder: str | Path) -> list[str]:
    """Names of the DiTs in a directory."""
    return sorted(path.parent.name for path in Path(folder).glob(f"{DIT_PREFIX}*/config.json"))


def read_checkpoint(folder: str | Path, variant: str = "") -> Checkpoint:
    """Describe one DiT of a directory of released layout, and all that it works with; no weights are read.

    Args:
        folder: holds `diffusion_transformer_…`, `causal_video_vae` and the text encoders.
        variant: which DiT; may be left out where there is only one.

    Raises:
        ValueError: a part is missing, or the parts do not belong together.
    """
    folder = Path(folder).expanduser()
    variant = _variant(folder, variant)
    released = _read(folder / variant / "config.json")
    is_sd3 = released.get("_class_name") == MMDIT_CLASS
    dit = (mmdit_config_from_released if is_sd3 else miniflux_config_from_released)(released)
    vae = vae_config_from_released(_read(folder / VAE_FOLDER / "config.json"))
    training = folder / variant / TRAINING_FILE
    trained = _read(training) if training.exists() else None
    text_dim, pooled_dim = _text_widths(folder)
    check_widths(dit, vae, text_dim, pooled_dim, str(folder))
    return Checkpoint(
        folder=folder,
        variant=variant,
        dit=dit,
        vae=vae,
        norm=vae.latent_norm or (SD3_LATENT_NORM if is_sd3 else MINIFLUX_LATENT_NORM),
        pyramid=PyramidConfig.model_validate((trained or {}).get("config", {}).get("pyramid", {})),
        style=RELEASED_STYLE if trained is None else TRAINED_STYLE,
        most_latent_frames=MOST_LATENT_FRAMES.get(variant),
    )


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


def _variant(folder: Path, variant: str) -> str:
    if not folder.is_dir():
        raise ValueError(f"there is no model directory {str(folder)!r}: give the folder that was downloaded")
    found = variants(folder)
    if variant in found:
        return variant
    if not found:
        raise ValueError(f"{folder} has no {DIT_PREFIX}_…/config.json: it is no directory of Pyramid Flow weights")
    short = [name for name in found if name.removeprefix(f"{DIT_PREFIX}_") == variant]
    if short or (not variant and len(found) == 1):
        return (short or found)[0]
    asked = f"has no variant {variant!r}" if variant else "has several variants"
    raise ValueError(f"{folder} {asked}: choose one of {', '.join(found)} (--variant)")


def _text_widths(folder: Path) -> tuple[int, int]:
    """Widths of the token features and of the pooled vector."""
    parts = [_read(folder / part / "config.json") for part, _ in released_text_parts(folder)]
    if not parts or "d_model" not in parts[-1]:
        raise ValueError(f"{folder} lacks its text encoders (text_encoder, text_encoder_2, …): download all of it")
    *clips, t5 = parts
    pooled = [clip["projection_dim"] if len(clips) == 2 else clip["hidden_size"] for clip in clips]
    return t5["d_model"], sum(pooled) or t5["d_model"]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as err:
        raise ValueError(f"{path} is missing: download the whole directory") from err
    except json.JSONDecodeError as err:
        raise ValueError(f"{path} is no JSON: {err}") from err
