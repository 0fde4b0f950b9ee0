"""Cases of the diffusion transformers: forward calls, a training step with gradients, sampling of whole clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyramid_model.config import LatentNorm
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import units_in
from pyramid_model.flow.sampler import Sampling, falling_guidance, guidance_per_unit, sample_video
from pyramid_model.flow.schedule import Schedule
from pyramid_model.parity.case import Case, CaseError, Replay
from pyramid_model.parity.flow_cases import LATENT_NORMS, check_columns, pyramid_of, training_columns, units_of
from pyramid_model.parity.vae_cases import vae_of
from pyramid_model.text import TextFeatures
from pyramid_model.train.dit_loss import dit_loss
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.pixels import to_uint8, to_unit_range
from pyramid_model.vae.tiling import Tile
from pyramid_model.weights.released_names import (
    MINIFLUX_NAMES,
    MMDIT_NAMES,
    Names,
    miniflux_config_from_released,
    mmdit_config_from_released,
    released_name,
)

FORWARD_ATOL = 2e-5
LOSS_RTOL, GRAD_RTOL = 1e-5, 1e-4
GRAD_ATOL = 3e-5  # relative to the largest gradient of the parameter: sums of cancelling terms have few exact digits
SAMPLE_ATOL, SAMPLE_RTOL = 3e-4, 1e-4
WRONG_PIXELS = 0.005  # share of pixels that may differ by 1, since frames are truncated to uint8


@dataclass(frozen=True)
class Family:
    """One of the transformers.

    kind: its name in the original.
    model: our class.
    names: of its weights.
    config: converts the original constructor arguments to our config.
    """

    kind: str
    model: Callable[[Any], DiT]
    names: Names
    config: Callable[[dict[str, Any]], Any]

    @property
    def norm(self) -> LatentNorm:
        """Normalisation of its latents."""
        return LATENT_NORMS[self.kind]

    def build(self, case: Case, options: str, seed: str) -> DiT:
        """The case's transformer, in evaluation mode."""
        dit = self.model(self.config(case.setting(options)))
        case.load_weights(dit, self.names, seed=seed)
        return dit


FAMILIES = {  # by the first word of the case
    "miniflux": Family("flux", MiniFlux, MINIFLUX_NAMES, miniflux_config_from_released),
    "mmdit": Family("mmdit", MMDiT, MMDIT_NAMES, mmdit_config_from_released),
}


def family_of(case: Case) -> Family:
    """The transformer of a case.

    Raises:
        CaseError: the case's `kind` contradicts its name.
    """
    family = FAMILIES[case.name.split("_")[0]]
    if (kind := case.setting("kind", family.kind)) != family.kind:
        raise CaseError(f"{case.folder}: kind {kind!r} contradicts case {case.name!r}; expected {family.kind!r}")
    return family


@torch.no_grad()
def run_forward(case: Case) -> None:
    """One forward call: the velocity of each column."""
    dit = family_of(case).build(case, "init_kwargs", "init_seed")
    num_columns = 1 + max((int(name.split(".")[2]) for name in case.names("in.sample.")), default=-1)
    columns = [case.series(f"in.sample.{i}.") for i in range(num_columns)]
    velocities = dit(columns, case["in.timestep_ratio"], text_of(case))
    for i, velocity in enumerate(velocities):
        case.check(f"out.{i}", velocity, FORWARD_ATOL)


def run_train_step(case: Case) -> None:
    """Noisy columns, predictions, loss, and the gradient of every parameter."""
    family, pyramid, text = family_of(case), pyramid_of(case.config), text_of(case)
    dit = family.build(case, "init_kwargs", "init_seed")
    batch = training_columns(case, pyramid, family.kind)
    check_columns(case, batch, "")
    case.check("in.timesteps", batch.timestep, 1e-6)

    predictions: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        predictions.extend(output)

    dit.register_forward_hook(keep)
    latents, noise = family.norm.normalise(case["in.latent"]), cast(Noise, Replay(case.series("rng.")))
    units = units_of(case, pyramid, latents.shape[2])
    loss, _ = dit_loss(dit, latents, text, Schedule(pyramid), noise, tuple(case.setting("sample_ratios")), units)
    for i, prediction in enumerate(predictions):
        case.check(f"out.pred.{i}", prediction, FORWARD_ATOL)
    case.check("out.loss", loss, 0, LOSS_RTOL)

    loss.backward()
    parameters = {released_name(name, family.names): parameter for name, parameter in dit.named_parameters()}
    norms = case.setting("grad_norms")
    if parameters.keys() != norms.keys():
        raise CaseError(
            f"{case.folder}: grad_norms differ from our parameters in {sorted(parameters.keys() ^ norms.keys())}"
        )
    for name, parameter in parameters.items():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        case.check_value(f"norm of grad.{name}", grad.norm(), norms[name] or 0.0, 1e-8, GRAD_RTOL)
        if f"grad.{name}" in case:
            largest = float(case[f"grad.{name}"].abs().max())
            case.check(f"grad.{name}", grad, GRAD_ATOL * largest, GRAD_RTOL)


@torch.no_grad()
def run_generate(case: Case) -> None:
    """A whole clip from noise, in some cases with a given first image, and its decoded frames."""
    family, pyramid, task = family_of(case), pyramid_of(case.config), case.setting("task")
    if task not in ("t2v", "i2v"):
        raise CaseError(f"{case.folder}: task {task!r} is neither 't2v' nor 'i2v'")
    dit = family.build(case, "dit_init_kwargs", "dit_seed")
    vae = vae_of(case, "vae_init_kwargs", "vae.safetensors", "vae_seed")
    noise, per_unit = case["rng.init_noise"], pyramid.frames_per_unit
    num_frames, given = case.setting("temp"), []
    if task == "i2v":
        num_frames += 1 - per_unit
        given = [family.norm.normalise(_encode_image(case, vae))]
        # The original's noise starts at the first new frame. Ours starts at the image, whose noise is not used.
        noise = torch.cat([torch.zeros_like(noise[:, :, :1]), noise[:, :, :-per_unit]], dim=2)
    replay = Replay([noise], case.series("rng.block_noise."))
    size = (num_frames, noise.shape[3], noise.shape[4])
    guidance = _guidance(case, units_in(num_frames, per_unit))
    sampling = Sampling(pyramid, size, *_steps(case, task, pyramid.num_stages), guidance)
    latents = sample_video(dit, *_prompts(case), sampling, cast(Noise, replay), given)
    replay.check_spent()
    case.check("out.latent", latents, SAMPLE_ATOL, SAMPLE_RTOL)
    _check_frames(case, vae, family.norm)


def text_of(case: Case) -> TextFeatures:
    """Text features of a forward call."""
    names = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
    embeds, mask, pooled = (case[f"in.{name}"] for name in names)
    return TextFeatures(embeds, mask.bool(), pooled)


def _prompts(case: Case) -> tuple[TextFeatures, TextFeatures | None]:
    """(prompt, negative prompt); the negative prompt is None if guidance is off."""
    positive, negative = (
        TextFeatures(
            case[f"in.{side}.prompt_embeds"], case[f"in.{side}.attention_mask"].bool(), case[f"in.{side}.pooled"]
        )
        if f"in.{side}.prompt_embeds" in case
        else None
        for side in ("pos", "neg")
    )
    if positive is None:
        raise CaseError(f"{case.folder} has no tensor 'in.pos.prompt_embeds'")
    if not case.setting("guidance_scale") > 0:
        return positive, None
    if negative is None:
        raise CaseError(f"{case.folder} has guidance but no tensor 'in.neg.prompt_embeds'")
    return positive, negative.repeat_to(positive.mask.shape[0])


def _steps(case: Case, task: str, num_stages: int) -> tuple[list[int], list[int]]:
    """Euler steps of each stage for the first unit and for later units; equal after a given image."""
    names = ("num_inference_steps", "video_num_inference_steps" if task == "t2v" else "num_inference_steps")
    first, rest = (
        [steps] * num_stages if isinstance(steps, int) else list(steps) for steps in (case.setting(n) for n in names)
    )
    return first, rest


def _guidance(case: Case, num_units: int) -> list[float]:
    """Scale of each unit."""
    first = float(case.setting("guidance_scale"))
    if not case.setting("use_linear_guidance", False):
        return guidance_per_unit(first, float(case.setting("video_guidance_scale")), num_units)
    return falling_guidance(first, case.setting("alpha", 0.5), case.setting("min_guidance_scale", 2.0), num_units)


def _encode_image(case: Case, vae: CausalVideoVAE) -> Tensor:
    """Latents (1 c 1 h w) of the first image of a clip, drawn with the recorded noise."""
    image = to_unit_range(case["in.image_u8_hwc"][None].numpy())[None]
    posterior = vae.encode(image, tile=_tile(case, 256))
    return posterior.mean + posterior.std * case["rng.vae_posterior_noise.0"]


def _check_frames(case: Case, vae: CausalVideoVAE, norm: LatentNorm) -> None:
    """Check the decoder on the reference's latents, so that errors of the sampler do not count twice."""
    if "out.frames_u8" not in case:
        return
    window, tile = (1, _tile(case, 256)) if case.setting("save_memory", True) else (2, _tile(case, 512))
    video = vae.decode(norm.denormalise(case["out.latent"]), window, tile=tile)
    frames, expected = torch.from_numpy(to_uint8(video)).flatten(0, 1), case["out.frames_u8"]
    if (frames.int() - expected.int()).abs().max() > 1:
        case.check_value("out.frames_u8", frames, expected, atol=1)
    wrong = (frames != expected).double().mean()
    case.check_value("pixels of out.frames_u8 that differ by 1", wrong, 0.0, WRONG_PIXELS)


def _tile(case: Case, side: int) -> Tile | None:
    """Tiles of `side` px if the case uses tiling, else None."""
    return Tile(side, side) if case.setting("tiling", False) else None
