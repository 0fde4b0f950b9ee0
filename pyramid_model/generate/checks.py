"""Checks before generation: the models can generate the requested clips, and they fit each other."""

from __future__ import annotations

from pyramid_model.config import PATCH, DiTConfig, MMDiTConfig, PyramidConfig, VAEConfig
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.weights.checkpoint import Checkpoint


def check_checkpoint(request: GenerationRequest, checkpoint: Checkpoint) -> None:
    """Raise ValueError, naming the setting, unless the models of a checkpoint can generate this clip."""
    length = checkpoint.most_latent_frames
    check_request(request, checkpoint.dit, checkpoint.vae, checkpoint.pyramid, length, checkpoint.name)


def check_request(
    request: GenerationRequest,
    dit: DiTConfig,
    vae: VAEConfig,
    pyramid: PyramidConfig,
    most_latent_frames: int | None,
    name: str = "this model",
) -> None:
    """Raise ValueError, naming the setting, unless the models can generate this clip; name: of the DiT."""
    request.check(vae, pyramid)
    check_positions(dit, vae, request)
    if most_latent_frames and request.num_latent_frames > most_latent_frames:
        frames = 1 + vae.time_factor * (most_latent_frames - 1)
        raise ValueError(
            f"num_latent_frames {request.num_latent_frames}: {name} makes at most {most_latent_frames} latent frames, "
            f"which are {frames} frames. Set request.num_latent_frames, or take another variant."
        )


def check_positions(dit: DiTConfig, vae: VAEConfig, request: GenerationRequest) -> None:
    """Raise ValueError if the picture is larger than the position table of an MMDiT."""
    if not isinstance(dit, MMDiTConfig):
        return
    most = dit.position_grid * PATCH * vae.space_factor
    for name in ("height", "width"):
        px = getattr(request, name)
        if px > most:
            raise ValueError(f"{name} {px} px: this model knows positions for at most {most} px. Set request.{name}.")


def check_widths(dit: DiTConfig, vae: VAEConfig, text_dim: int, pooled_dim: int) -> None:
    """Raise ValueError unless DiT, VAE and text encoder have matching widths."""
    pairs = (
        ("latent channels", dit.latent_channels, "VAE", vae.latent_channels),
        ("text features", dit.text_dim, "T5 encoder", text_dim),
        ("pooled text features", dit.pooled_dim, "text encoder", pooled_dim),
    )
    for name, expected, maker, actual in pairs:
        if expected != actual:
            raise ValueError(
                f"these models do not fit: the DiT expects {expected} {name}, the {maker} makes {actual}: they are not "
                "of one model"
            )
