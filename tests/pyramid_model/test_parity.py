"""Our models and paths against vectors of the original implementation; see parity/README.md. Runs in about 5 s."""

import pytest
import torch

from pyramid_model.config import MINIFLUX_LATENT_NORM, SD3_LATENT_NORM, PyramidConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.flow.jump import jump
from pyramid_model.flow.path import noisy_columns, units_in, units_to_train
from pyramid_model.flow.sampler import guidance_per_unit, sample_video
from pyramid_model.flow.schedule import Schedule, euler_step, local_times, sampling_local_times
from pyramid_model.text import TextFeatures
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights import (
    MINIFLUX_NAMES,
    VAE_NAMES,
    load_released,
    miniflux_config_from_released,
    released_name,
    vae_config_from_released,
)


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
    bounds = tuple(config["stage_range"])
    return Schedule(PyramidConfig(num_stages=len(bounds) - 1, stage_bounds=bounds, gamma=config["gamma"]))


def miniflux(config, weights):
    dit = MiniFlux(miniflux_config_from_released(config))
    load_released(dit, MINIFLUX_NAMES, weights, "reference")
    return dit.eval()


@pytest.fixture(scope="module")
def vae_case(reference, reference_weights):
    config, tensors = reference("vae")
    vae = CausalVideoVAE(vae_config_from_released(config["init_kwargs"]))
    load_released(vae, VAE_NAMES, reference_weights("vae"), "reference")
    return vae.eval(), tensors


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
    if config.get("use_temporal_pyramid", True):
        units = units_to_train(
            call=config["accumulate_steps_before"] + 1,
            rank=config["rank"],
            sync_group=config["video_sync_group"],
            max_units=config["max_temporal_length"],
            available_units=units_in(latents.shape[2], 1),
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


def test_a_training_step_of_the_dit_equals_the_original(reference, reference_weights):
    config, tensors = reference("miniflux_train_step")
    dit = miniflux(config["init_kwargs"], reference_weights("miniflux_train_step"))
    batch, _ = training_columns(config, tensors, Schedule(PyramidConfig()), MINIFLUX_LATENT_NORM)
    text = TextFeatures(
        tensors["in.encoder_hidden_states"],
        tensors["in.encoder_attention_mask"].bool(),
        tensors["in.pooled_projections"],
    )
    velocities = dit(batch.columns, batch.timestep, text)
    for i, velocity in enumerate(velocities):
        close(velocity, tensors[f"out.pred.{i}"], 2e-5)
    errors = [(v - t).square().flatten(1).mean(1) for v, t in zip(velocities, batch.targets, strict=True)]
    loss = torch.cat(errors).mean()
    close(loss, tensors["out.loss"], 0, rtol=1e-5)
    loss.backward()
    for name, parameter in dit.named_parameters():
        expected = config["grad_norms"][released_name(name, MINIFLUX_NAMES)]
        norm = 0.0 if parameter.grad is None else parameter.grad.norm().item()
        assert norm == pytest.approx(expected, rel=1e-4, abs=1e-8), name


@torch.no_grad()
def test_sampling_equals_the_original(reference, reference_weights):
    config, tensors = reference("miniflux_generate_t2v")
    dit = miniflux(config["dit_init_kwargs"], reference_weights("miniflux_generate_t2v"))
    positive, negative = (
        TextFeatures(
            tensors[f"in.{side}.prompt_embeds"],
            tensors[f"in.{side}.attention_mask"].bool(),
            tensors[f"in.{side}.pooled"],
        )
        for side in ("pos", "neg")
    )
    noise = Replay([tensors["rng.init_noise"]], draws(tensors, "rng.block_noise"))
    latents = sample_video(
        dit,
        positive,
        negative,
        schedule_of(config),
        noise,  # pyright: ignore[reportArgumentType]
        size=tuple(tensors["rng.init_noise"].shape[2:]),
        first_steps=config["num_inference_steps"],
        steps=config["video_num_inference_steps"],
        guidance=guidance_per_unit(config["guidance_scale"], config["video_guidance_scale"], config["temp"]),
    )
    close(latents, tensors["out.latent"], 3e-4, rtol=1e-4)
