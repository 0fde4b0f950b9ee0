"""Cases of the VAE's training loss. Their weights are drawn from a seed, since VGG16 is too large to store."""

from __future__ import annotations

import re

import torch
from torch.nn import functional as F

from pyramid_model.config import VAEGANConfig
from pyramid_model.parity.case import Case, CaseError, recipe_weights
from pyramid_model.vae.discriminator import PatchDiscriminator
from pyramid_model.vae.loss import PerceptualDistance, discriminator_loss, restoration_loss, single_frames
from pyramid_model.vae.posterior import Posterior
from pyramid_model.weights.released_names import DISCRIMINATOR_NAMES, PERCEPTUAL_NAMES, VGG16_SLICES, released_name

LOSS_RTOL, GRAD_RTOL = 1e-5, 1e-4
GRAD_ATOL = 1e-5  # relative to the largest gradient
LOGIT_ATOL = 2e-5
SUM_ATOL = 1e-3  # for sums of a million weights

OPTIONS = {
    "disc_start": "adversarial_start",
    "disc_weight": "adversarial_weight",
    "kl_weight": "kl_weight",
    "pixelloss_weight": "pixel_weight",
    "perceptual_weight": "perceptual_weight",
    "logvar_init": "logvar",
}
FIXED = {"disc_factor": 1.0, "disc_in_channels": 3, "disc_loss": "hinge", "using_3d_discriminator": False}
# our part of the loss -> name in the original's log
LOGGED = {
    "pixel": "rec_loss",
    "perceptual": "perception_loss",
    "reconstruction": "nll_loss",
    "kl": "kl_loss",
    "adversarial": "g_loss",
    "adversarial_weight": "d_weight",
}


def run_loss(case: Case) -> None:
    """Losses of VAE and discriminator before and after the adversarial loss starts; gradient of the last layer."""
    config, num_layers = _config(case)
    perceptual, discriminator = PerceptualDistance().eval(), PatchDiscriminator(num_layers).eval()
    _draw_weights(case, perceptual, discriminator)
    frames = case["in.x"]
    with torch.no_grad():
        case.check("out.lpips", perceptual(single_frames(frames), single_frames(0.5 * frames)), 0, LOSS_RTOL)
        case.check("out.disc_logits", discriminator(single_frames(frames)), LOGIT_ATOL)

    posterior = Posterior.from_moments(case["in.moments"])
    last_layer = case["in.last_layer_weight"].clone().requires_grad_()
    restored = F.conv3d(case["in.feat"], last_layer)
    for step in sorted(
        int(m.group(1)) for name in case.names("out.") if (m := re.match(r"out\.step(\d+)\.loss", name))
    ):
        networks = (perceptual, discriminator)
        loss, parts = restoration_loss(frames, restored, posterior, last_layer, *networks, config, step)
        case.check(f"out.step{step}.loss", loss, 0, LOSS_RTOL)
        (grad,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        largest = float(case[f"out.step{step}.grad_last_layer"].abs().max())
        case.check(f"out.step{step}.grad_last_layer", grad, GRAD_ATOL * largest, GRAD_RTOL)
        against = discriminator_loss(frames, restored, discriminator, config, step)
        case.check(f"out.step{step}.disc_loss", against, 0, LOSS_RTOL)
        log = case.setting("logs", {}).get(f"step{step}", {})
        for ours, theirs in LOGGED.items():
            if (logged := log.get(f"train/{theirs}")) is not None:
                rtol = GRAD_RTOL if ours == "adversarial_weight" else LOSS_RTOL
                case.check_value(f"step{step} {theirs}", parts.get(ours, 0.0), logged, 1e-6, rtol)


def _config(case: Case) -> tuple[VAEGANConfig, int]:
    """(weights of the loss, number of layers of the discriminator)."""
    options = dict(case.setting("kwargs"))
    num_layers = options.pop("disc_num_layers", 4)
    for name, supported in FIXED.items():
        if options.pop(name, supported) != supported:
            raise CaseError(f"{case.folder}: {name} other than {supported!r} is not supported")
    if unknown := options.keys() - OPTIONS.keys():
        raise CaseError(f"{case.folder}: options of the loss not understood: {', '.join(sorted(unknown))}")
    return VAEGANConfig(**{OPTIONS[name]: value for name, value in options.items()}), num_layers


def _draw_weights(case: Case, perceptual: PerceptualDistance, discriminator: PatchDiscriminator) -> None:
    """Draw the weights of both networks by the case's recipe, and compare them with the sums in the case."""
    recipe = case.setting("weight_recipe", "")
    seed = re.search(r"seed=(\d+)", recipe)
    if not seed:
        raise CaseError(f"{case.folder}: weight_recipe {recipe!r} has no seed")
    names = (*PERCEPTUAL_NAMES, *VGG16_SLICES)
    ours = {f"perceptual_loss.{released_name(name, names)}": p for name, p in perceptual.named_parameters()}
    ours |= {
        f"discriminator.{released_name(name, DISCRIMINATOR_NAMES)}": p for name, p in discriminator.named_parameters()
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in ours.items()}
    drawn = recipe_weights(shapes | {"logvar": ()}, int(seed.group(1)))
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(drawn[name].abs() if ".lin" in name else drawn[name])
    for name, (_, total) in case.setting("param_sums", {}).items():
        if name in ours:
            case.check_value(f"sum of {name}", ours[name].double().sum(), total, SUM_ATOL)
        elif name != "logvar":
            raise CaseError(f"{case.folder}: param_sums names {name!r}, which we do not have")
