"""One DiT of a directory in the released layout, with its VAE and text encoders, described by small JSON files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pyramid_model.config import DiTConfig, LatentNorm, PyramidConfig, VAEConfig
from pyramid_model.weights.record import TrainedModel, read_record
from pyramid_model.weights.released import ReleasedDirectory, find_released
from pyramid_model.weights.released_names import (
    MMDIT_CLASS,
    VAE_CLASS,
    miniflux_config_from_released,
    mmdit_config_from_released,
    vae_config_from_released,
)
from pyramid_model.weights.weights import read_config
from pyramid_model.weights.weights_report import inspect_directory

MAX_PROBLEMS = 3  # shown in one message
# Latent frames that the released variants were trained for. Source: the published pipeline.
MOST_LATENT_FRAMES = {"384p": 16, "768p": 31, "image": 1}


@dataclass(frozen=True)
class Checkpoint:
    """A DiT of a directory with the VAE and the text encoders that belong to it.

    name: of the DiT, such as `768p`.
    norm: shift and scale of the latents the DiT was trained on.
    record: how the DiT was trained; None for one that was not trained here.
    """

    parts: ReleasedDirectory
    name: str
    dit: DiTConfig
    vae: VAEConfig
    norm: LatentNorm
    record: TrainedModel | None

    @property
    def dit_folder(self) -> Path:
        """Folder of the DiT's weights."""
        return self.parts.dit(self.name)

    @property
    def pyramid(self) -> PyramidConfig:
        """Stages and units that the DiT was trained with."""
        return self.record.pyramid if self.record else PyramidConfig()

    @property
    def autoregressive(self) -> bool:
        """Whether the DiT was trained unit by unit."""
        return self.record is None or self.record.autoregressive

    @property
    def most_latent_frames(self) -> int | None:
        """Longest clip, in latent frames; None: unknown."""
        return None if self.record else MOST_LATENT_FRAMES.get(self.name)


def read_checkpoint(folder: str | Path, variant: str = "") -> Checkpoint:
    """Describe one DiT of a directory, its VAE and its text encoders; reads headers of weights, not the weights.

    Args:
        folder: holds `diffusion_transformer_…`, `causal_video_vae` and the text encoders.
        variant: which DiT, e.g. `768p` or `diffusion_transformer_768p`; may be empty if there is only one.

    Raises:
        FileNotFoundError: parts are missing; the message names each.
        ValueError: the folder is of another kind or lacks the variant, its parts do not belong together, or a file is
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
    record = read_record(dit_folder)
    norm = (record and record.trained_on.latent_norm) or vae.latent_norm or parts.latent_norm
    return Checkpoint(parts=parts, name=name, dit=dit, vae=vae, norm=norm, record=record)


def _refuse_damage(parts: ReleasedDirectory, name: str) -> None:
    """Raise ValueError if the DiT, its VAE or its text encoders are incomplete, by configs and headers of files."""
    report = inspect_directory(replace(parts, dits={name: parts.dits[name]}))
    problems = [*report.problems, *(f"{part.name}: {line}" for part in report.parts for line in part.problems)]
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise ValueError(
            f"{parts.folder} cannot be used: {'; '.join(problems[:MAX_PROBLEMS])}{more}. "
            f"`pyramid weights inspect {parts.folder}` lists all problems"
        )
