"""Our models and paths against vectors of the original implementation; see parity/README.md. Runs in about 30 s.

Cases of the DiTs are taken from parity/ beside this file, and from all of `SHARED` where that is at hand.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyramid_model.config import MINIFLUX_LATENT_NORM, SD3_LATENT_NORM, MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.flow.jump import jump
from pyramid_model.flow.path import noise_pyramid, noisy_columns, units_in, units_to_train
from pyramid_model.flow.sampler import falling_guidance, guidance_per_unit, sample_unit, sample_video
from pyramid_model.flow.schedule import Schedule, euler_step, local_times, sampling_local_times
from pyramid_model.text import TextFeatures
from pyramid_model.train.vae_loss import to_uint8, to_unit_range
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights import (
    MINIFLUX_NAMES,
    MMDIT_NAMES,
    VAE_NAMES,
    load_released,
    miniflux_config_from_released,
    mmdit_config_from_released,
    released_name,
    to_released,
    vae_config_from_released,
)

HERE = Path(__file__).parent / "parity"
SHARED = Path(__file__).parents[3] / "shared" / "parity"
# our names -> theirs, in a case's config or tensors
PYRAMID_KEYS = {"gamma": "gamma", "shift": "shift", "frames_per_unit": "frame_per_unit"}
PROMPT = {"embeds": "prompt_embeds", "mask": "attention_mask", "pooled": "pooled"}
ENCODED = {"embeds": "encoder_hidden_states", "mask": "encoder_attention_mask", "pooled": "pooled_projections"}


class Replay:
    """Hands out recorded draws instead of drawing."""

    def __init__(self, draws, blocks=()):
        self.draws, self.blocks = list(draws), list(blocks)

    def normal(self, *shape):
        draw = self.draws.pop(0)
        assert draw.shape == shape
        return draw

    uniform = normal

    def block(self, *shape, gamma):
        draw = self.blocks.pop(0)
        assert draw.shape == shape
        return draw


def close(actual, expected, atol, rtol=0.0):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def draws(tensors, prefix):
    return [tensors[name] for name in sorted(tensors) if name.startswith(prefix)]


def schedule_of(config):
    """Schedule of a case; what it does not say is as released."""
    bounds = tuple(config.get("stage_range", (0, 1 / 3, 2 / 3, 1)))
    options = {ours: config[theirs] for ours, theirs in PYRAMID_KEYS.items() if theirs in config}
    return Schedule(PyramidConfig(num_stages=len(bounds) - 1, stage_bounds=bounds, **options))


def vae_of(config, weights):
    vae = CausalVideoVAE(vae_config_from_released(config))
    load_released(vae, VAE_NAMES, weights, "reference")
    return vae.eval()


@pytest.fixture(scope="module")
def vae_case(reference, reference_weights):
    config, tensors = reference("vae")
    return vae_of(config["init_kwargs"], reference_weights("vae")), tensors


def dit_cases(kind):
    """Decorator: run a test with the folder of every case of a kind, of either DiT."""
    folders = [f for root in (HERE, SHARED / "dev") for f in sorted(root.glob(f"m*_{kind}*"))]
    params = [pytest.param(f, id=f"{f.parent.name}-{f.name}") for f in folders]
    if not SHARED.exists():
        skip = pytest.mark.skip(reason=f"more cases would be in {SHARED}, which is not there")
        params.append(pytest.param(None, id="shared", marks=skip))
    return pytest.mark.parametrize("folder", params)


def dit_case(folder):
    """(config, tensors, DiT, its names, its latent norm) of a case."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "tensors.safetensors")
    sizes = config.get("init_kwargs") or config["dit_init_kwargs"]
    if config["case"].startswith("mmdit"):
        dit, names, norm = MMDiT(mmdit_config_from_released(sizes)), MMDIT_NAMES, SD3_LATENT_NORM
    else:
        dit, names, norm = MiniFlux(miniflux_config_from_released(sizes)), MINIFLUX_NAMES, MINIFLUX_LATENT_NORM
    load_released(dit, names, load_file(folder / "weights.safetensors"), "reference")
    return config, tensors, dit.eval(), names, norm


def text_of(tensors, prefix, keys):
    embeds, mask, pooled = (tensors[prefix + keys[part]] for part in ("embeds", "mask", "pooled"))
    return TextFeatures(embeds, mask.bool(), pooled)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["encode_image", "encode_video"])
def test_vae_encodes_like_the_original(vae_case, kind):
    vae, tensors = vae_case
    posterior = vae.encode(tensors[f"{kind}.in.x"])
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    close(moments, tensors[f"{kind}.out.moments"], 2e-5)
    if f"{kind}.out.kl" in tensors:
        close(posterior.std, tensors[f"{kind}.out.std"], 2e-5)
        close(posterior.kl(), tensors[f"{kind}.out.kl"], 1e-4, rtol=1e-5)


@torch.no_grad()
def test_vae_decodes_like_the_original(vae_case):
    vae, tensors = vae_case
    latents = tensors["decode.in.z"]
    close(vae.decode(latents), tensors["decode.out.video"], 5e-5)
    close(vae.decode(latents, window=1), tensors["decode.out.video"], 5e-5)
    close(vae.decode(latents, starts_clip=False), tensors["decode.out.video_not_init"], 5e-5)
    close(vae.decode(tensors["decode.in.z_image"]), tensors["decode.out.image"], 5e-5)


def test_schedule_equals_the_original(reference):
    config, tensors = reference("scheduler")
    num_steps = config["steps"][0]
    local_t = sampling_local_times(num_steps)
    for variant in config["variants"]:
        name = f"v{variant['index']}"
        schedule = schedule_of(variant["kwargs"])
        for i, stage in enumerate(schedule.stages):
            assert stage.start == pytest.approx(variant["start_sigmas"][str(i)], rel=1e-9)
            assert stage.end == pytest.approx(variant["end_sigmas"][str(i)], rel=1e-9)
            assert stage.reached == pytest.approx(variant["ori_start_sigmas"][str(i)], rel=1e-9)
            close(stage.timesteps(), tensors[f"{name}.timesteps_per_stage.{i}"], 0, rtol=1e-9)
            told = tensors[f"{name}.set_timesteps.stage{i}.n{num_steps}.timesteps"]
            close(stage.sampling_timesteps(num_steps), told, 0, rtol=1e-9)
            close(local_t, tensors[f"{name}.set_timesteps.stage{i}.n{num_steps}.sigmas"], 0, rtol=1e-9)
        samples, velocities = tensors[f"{name}.step.samples"], tensors[f"{name}.step.model_outputs"]
        x, times = samples[0], local_t.tolist()
        for i in range(num_steps):
            x = euler_step(x, velocities[i], times[i], times[i + 1])
            close(x, samples[i + 1], 1e-6)
    assert local_times()[-1] == pytest.approx(0.001)


@pytest.mark.parametrize("stage", [1, 2])
def test_jump_equals_the_original(reference, stage):
    config, tensors = reference("renoise")
    x = jump(tensors["in.latent"], schedule_of(config).stages[stage], tensors["block_noise"], config["gamma"])
    close(x, tensors[f"out.stage{stage}"], 1e-6)


def training_columns(config, tensors, schedule, norm):
    latents, noise = norm.normalise(tensors["in.latent"]), Replay(draws(tensors, "rng."))
    units = None
    per_unit = schedule.config.frames_per_unit
    if config.get("use_temporal_pyramid", True):
        units = units_to_train(
            call=config["accumulate_steps_before"] + 1,
            rank=config["rank"],
            sync_group=config["video_sync_group"],
            max_units=units_in(config["max_temporal_length"], per_unit),
            available_units=units_in(latents.shape[2], per_unit),
            num_stages=schedule.config.num_stages,
        )
    batch = noisy_columns(latents, schedule, noise, tuple(config["sample_ratios"]), units)
    assert not noise.draws
    return batch, units


@pytest.mark.parametrize("name", ["train_noise_image", "train_noise_ar_short"])
def test_training_noise_equals_the_original(reference, name):
    config, tensors = reference(name)
    batch, units = training_columns(config, tensors, schedule_of(config), SD3_LATENT_NORM)
    assert units is None or list(units) == config["units_low_mid_high"]
    timestep = batch.timestep.view(-1, len(batch.columns))
    for i, clips in enumerate(batch.columns):
        assert len(clips) == len(draws(tensors, f"out.noisy.{i}."))
        for j, clip in enumerate(clips):
            close(clip, tensors[f"out.noisy.{i}.{j}"], 1e-6)
        close(batch.targets[i], tensors[f"out.target.{i}"], 1e-6)
        close(batch.local_t[i], tensors[f"out.ratio.{i}"].flatten(), 1e-6)
        close(timestep[:, i], tensors[f"out.timestep.{i}"], 1e-6)


@torch.no_grad()
@dit_cases("forward")
def test_a_call_of_the_dit_equals_the_original(folder):
    _, tensors, dit, _, _ = dit_case(folder)
    columns = {}
    for name in sorted(name for name in tensors if name.startswith("in.sample.")):
        columns.setdefault(name.split(".")[2], []).append(tensors[name])
    velocities = dit(list(columns.values()), tensors["in.timestep_ratio"], text_of(tensors, "in.", ENCODED))
    for i, velocity in enumerate(velocities):
        close(velocity, tensors[f"out.{i}"], 2e-5)


@dit_cases("train_step")
def test_a_training_step_of_the_dit_equals_the_original(folder):
    config, tensors, dit, names, norm = dit_case(folder)
    batch, _ = training_columns(config, tensors, schedule_of(config), norm)
    velocities = dit(batch.columns, batch.timestep, text_of(tensors, "in.", ENCODED))
    for i, velocity in enumerate(velocities):
        close(velocity, tensors[f"out.pred.{i}"], 2e-5)
    errors = [(v - t).square().flatten(1).mean(1) for v, t in zip(velocities, batch.targets, strict=True)]
    loss = torch.cat(errors).mean()
    close(loss, tensors["out.loss"], 0, rtol=1e-5)
    loss.backward()
    for name, parameter in dit.named_parameters():
        stored = released_name(name, names)
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert gradient.norm().item() == pytest.approx(config["grad_norms"][stored], rel=1e-4, abs=1e-8), name
        expected = tensors.get(f"grad.{stored}")
        if expected is not None:
            close(gradient, expected, 1e-4 * expected.abs().max().item())


@torch.no_grad()
@dit_cases("generate")
def test_sampling_equals_the_original(folder):
    config, tensors, dit, _, norm = dit_case(folder)
    vae_weights = folder / "vae.safetensors"
    vae = vae_of(config["vae_init_kwargs"], load_file(vae_weights)) if vae_weights.exists() else None
    sample = continued if config["task"] == "i2v" else from_noise
    latents = sample(config, tensors, dit, vae, norm)
    close(latents, tensors["out.latent"], 3e-4, rtol=1e-4)
    if vae:
        frames = to_uint8(vae.decode(norm.denormalise(latents), window=1 if config["save_memory"] else 2))
        off = abs(frames.reshape(-1, *frames.shape[2:]).astype(int) - tensors["out.frames_u8"].numpy())
        assert off.max() <= 1
        assert (off > 0).mean() < 0.005


def from_noise(config, tensors, dit, vae, norm):
    """Latents of a whole clip."""
    num_units = units_in(config["temp"], config["frame_per_unit"])
    return sample_video(
        *(dit, *prompts(config, tensors), schedule_of(config), replayed(tensors)),
        size=tuple(tensors["rng.init_noise"].shape[2:]),
        first_steps=steps_of(config, "num_inference_steps"),
        steps=steps_of(config, "video_num_inference_steps"),
        guidance=guidance_of(config, num_units, config["guidance_scale"]),
    )


def continued(config, tensors, dit, vae, norm):
    """Latents of a clip that goes on from an image; its noise starts with the first unit after that."""
    posterior = vae.encode(to_unit_range(tensors["in.image_u8_hwc"][None].numpy())[None])
    clean = [norm.normalise(posterior.mean + posterior.std * tensors["rng.vae_posterior_noise.0"])]
    schedule, noise, per_unit = schedule_of(config), replayed(tensors), config["frame_per_unit"]
    starts = noise_pyramid(noise.normal(*tensors["rng.init_noise"].shape), schedule.config.num_stages)[0]
    num_units = config["temp"] // per_unit
    scales = guidance_of(config, num_units, config["video_guidance_scale"])
    text, negative = prompts(config, tensors)
    for unit in range(1, num_units):
        start = starts[:, :, (unit - 1) * per_unit : unit * per_unit]
        steps = steps_of(config, "num_inference_steps")
        clean.append(sample_unit(dit, text, negative, schedule, noise, start, clean, steps, scales[unit]))
    return torch.cat(clean, dim=2)


def prompts(config, tensors):
    """(text, negative text or None where guidance is off)."""
    negative = text_of(tensors, "in.neg.", PROMPT) if config["guidance_scale"] > 0 else None
    return text_of(tensors, "in.pos.", PROMPT), negative


def replayed(tensors):
    return Replay([tensors["rng.init_noise"]], draws(tensors, "rng.block_noise"))


def steps_of(config, name):
    steps = config[name]
    return (steps,) * len(config["stages"]) if isinstance(steps, int) else steps


def guidance_of(config, num_units, first):
    if config["use_linear_guidance"]:
        return falling_guidance(config["guidance_scale"], 0.5, 2.0, num_units)
    return guidance_per_unit(first, config["video_guidance_scale"], num_units)


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
@pytest.mark.parametrize(
    ("table", "model", "sizes", "names"),
    [("miniflux", MiniFlux, MiniFluxConfig, MINIFLUX_NAMES), ("mmdit_sd3", MMDiT, MMDiTConfig, MMDIT_NAMES)],
)
def test_names_and_shapes_of_the_default_sizes_are_the_released_ones(table, model, sizes, names):
    with torch.device("meta"):
        stored = to_released(model(sizes()), names)
    released = json.loads((SHARED / "state_dict_keys" / f"{table}.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == released
