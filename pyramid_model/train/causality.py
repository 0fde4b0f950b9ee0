"""The causality probe: before a training starts, a change of the last frame must not move an earlier output.

A model whose frames see later ones trains well and generates badly, since the later frames do not exist then. Such a
fault does not show in the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyramid_model.config import PATCH
from pyramid_model.dit.transformer import DiT
from pyramid_model.text import TextFeatures
from pyramid_model.vae.autoencoder import CausalVideoVAE

NUM_FRAMES = 3  # latent frames of the clip that is tried
LARGEST = 1e-4  # change of an earlier output, relative to that of the last one, which rounding may cause


class NotCausal(ValueError):
    """An output depends on a later frame."""


def probe_dit(dit: DiT) -> None:
    """Check that the velocity of a frame does not depend on later frames. Nothing to check if the DiT is not causal.

    A fresh DiT predicts zero whatever its input is, so weights that are all zero are random in this call.

    Raises:
        NotCausal: it does.
    """
    if not dit.config.causal:
        return
    weight, generator = next(dit.parameters()), torch.Generator().manual_seed(0)
    side = 2 * PATCH

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(weight)

    latents = normal(1, dit.config.latent_channels, NUM_FRAMES, side, side)
    mask = torch.ones(1, 2, dtype=torch.bool)
    text = TextFeatures(normal(1, 2, dit.config.text_dim), mask, normal(1, dit.config.pooled_dim))
    weights = {
        name: normal(*value.shape) / value.shape[-1] ** 0.5 for name, value in dit.named_parameters() if not value.any()
    }
    timestep = torch.full((1,), 500.0, device=weight.device)

    def velocity(clip: Tensor) -> Tensor:
        return functional_call(dit, weights, ([[clip]], timestep, text))[0]

    with _probing(dit):
        _check("the DiT", velocity, latents)


def probe_vae(vae: CausalVideoVAE) -> None:
    """Check that latents do not depend on later frames, nor frames on later latents.

    Raises:
        NotCausal: they do.
    """
    weight, generator, side = next(vae.parameters()), torch.Generator().manual_seed(0), 2 * vae.config.space_factor
    num_frames = 1 + (NUM_FRAMES - 1) * vae.config.time_factor
    frames = (2 * torch.rand(1, 3, num_frames, side, side, generator=generator) - 1).to(weight)
    with _probing(vae):
        _check("the encoder of the VAE", lambda clip: vae.encode(clip).mode(), frames)
        _check("the decoder of the VAE", vae.decode, vae.encode(frames).mode(), vae.config.time_factor)


@contextmanager
def _probing(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, and the global random numbers as before."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        model.train(was_training)


def _check(name: str, model: Callable[[Tensor], Tensor], clip: Tensor, num_last: int = 1) -> None:
    """clip: (1 c t h w); its last frame is changed. num_last: outputs, (1 c t h w), that may depend on it."""
    changed = clip.clone()
    changed[:, :, -1] = -changed[:, :, -1]
    moved = (model(changed) - model(clip)).float().abs().amax(dim=(0, 1, 3, 4))
    earlier, last = float(moved[:-num_last].max()), float(moved[-num_last:].max())
    if not earlier <= LARGEST * last:
        raise NotCausal(
            f"{name} is not causal: a change of the last frame moves an earlier output by {earlier:.2g} (the last one "
            f"by {last:.2g}). A model that sees later frames cannot generate frame by frame: use the attention and the "
            "convolutions of this package, or set the model's `causal` to false and `loss.autoregressive` to false"
        )
