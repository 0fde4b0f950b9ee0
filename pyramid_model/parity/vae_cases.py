"""Cases of the causal video VAE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyramid_model.parity.case import WEIGHTS, Case
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.posterior import Posterior
from pyramid_model.vae.tiling import Tile
from pyramid_model.weights.released_names import VAE_NAMES, released_name, vae_config_from_released

ENCODE_ATOL, DECODE_ATOL = 2e-5, 5e-5
SUM_ATOL, SUM_RTOL = 1e-4, 1e-5  # for the divergence, which is a sum over a whole clip


def vae_of(case: Case, options: str = "init_kwargs", file: str = WEIGHTS, seed: str = "init_seed") -> CausalVideoVAE:
    """The case's VAE, in evaluation mode."""
    vae = CausalVideoVAE(vae_config_from_released(case.setting(options)))
    case.load_weights(vae, VAE_NAMES, file, seed)
    return vae


@torch.no_grad()
def run_encode(case: Case) -> None:
    """Moments of images or videos, values derived from them, and outputs of layers."""
    vae = vae_of(case)
    with recorded(vae, case.names("mid.")) as inside:
        posterior = vae.encode(case["in.x"])
    case.check("out.moments", moments(posterior), ENCODE_ATOL)
    case.check_if_present("out.mode", posterior.mode(), ENCODE_ATOL)
    case.check_if_present("out.std", posterior.std, ENCODE_ATOL)
    case.check_if_present("out.logvar", posterior.logvar, ENCODE_ATOL)
    case.check_if_present("out.kl", posterior.kl(), SUM_ATOL, SUM_RTOL)
    for name, value in inside.items():
        case.check(name, value, ENCODE_ATOL)


@torch.no_grad()
def run_encode_chunked(case: Case) -> None:
    """Moments of a video encoded at once, and in windows whose length is in the names of the tensors."""
    vae, prefix = vae_of(case), "out.moments_chunk_w"
    if "out.moments_whole" in case:
        case.check("out.moments_whole", moments(vae.encode(case["in.x"])), ENCODE_ATOL)
    for name in case.names(prefix):
        case.check(name, moments(vae.encode(case["in.x"], int(name.removeprefix(prefix)))), ENCODE_ATOL)


@torch.no_grad()
def run_decode(case: Case) -> None:
    """Frames of a video, of an image, and of latents that do not start a clip."""
    vae = vae_of(case)
    case.check("out.video", vae.decode(case["in.z"]), DECODE_ATOL)
    if "out.image" in case:
        case.check("out.image", vae.decode(case["in.z_image"]), DECODE_ATOL)
    if "out.video_not_init" in case:
        case.check("out.video_not_init", vae.decode(case["in.z"], starts_clip=False), DECODE_ATOL)


@torch.no_grad()
def run_decode_chunked(case: Case) -> None:
    """Frames of a video decoded at once, and in windows whose length is in the names of the tensors."""
    vae, prefix = vae_of(case), "out.video_chunk_w"
    if "out.video_whole" in case:
        case.check("out.video_whole", vae.decode(case["in.z"]), DECODE_ATOL)
    for name in case.names(prefix):
        case.check(name, vae.decode(case["in.z"], int(name.removeprefix(prefix))), DECODE_ATOL)


@torch.no_grad()
def run_tiled(case: Case) -> None:
    """Moments and frames in tiles, with and without windows in time."""
    vae, side = vae_of(case), case.setting("tile_sample_min_size")
    tile = Tile(side, side)
    for name, window in (("out.moments", None), ("out.moments_chunk", 8)):
        if name in case:
            case.check(name, moments(vae.encode(case["in.x"], window, tile)), ENCODE_ATOL)
    for name, window in (("out.video", None), ("out.video_chunk", 1)):
        if name in case:
            case.check(name, vae.decode(case["in.z"], window, tile=tile), DECODE_ATOL)


def moments(posterior: Posterior) -> Tensor:
    """Mean and log variance stacked along channels, (b 2c t h w)."""
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


@contextmanager
def recorded(vae: CausalVideoVAE, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collect outputs of submodules within the block. names: `mid.` and the original name of the submodule."""
    modules = {f"mid.{released_name(name, VAE_NAMES)}": module for name, module in vae.named_modules()}
    modules |= {f"{name}_block": module for name, module in modules.items() if name.endswith(".mid")}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name] = output

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in names if name in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
