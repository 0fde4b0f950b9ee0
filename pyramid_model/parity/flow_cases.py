"""Cases of package `flow`: schedule, jump, noisy latents of a training batch."""

from __future__ import annotations

from typing import Any, cast

import torch

from pyramid_model.config import MINIFLUX_LATENT_NORM, SD3_LATENT_NORM, PyramidConfig
from pyramid_model.flow.history import latent_pyramid
from pyramid_model.flow.jump import block_noise, jump, jump_weights, upsample
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.path import TrainingColumns, noisy_columns, units_in, units_to_train
from pyramid_model.flow.schedule import NUM_TIMESTEPS, Schedule, euler_step, local_times, sampling_local_times
from pyramid_model.parity.case import Case, CaseError, Replay

TABLE_RTOL = 1e-9  # float64 tables
STEP_ATOL = 1e-6  # float32 arithmetic on latents
LATENT_NORMS = {"flux": MINIFLUX_LATENT_NORM, "mmdit": SD3_LATENT_NORM}

# original option -> our setting
PYRAMID_KEYS = {
    "gamma": "gamma",
    "shift": "shift",
    "frame_per_unit": "frames_per_unit",
    "corrupt_ratio": "corrupt_ratio",
}


def pyramid_of(options: dict[str, Any]) -> PyramidConfig:
    """Our pyramid config from the options of a case; missing options have the released values.

    Raises:
        ValueError: an option is out of range, or stages and stage_range contradict each other.
    """
    settings = {ours: options[theirs] for theirs, ours in PYRAMID_KEYS.items() if options.get(theirs) is not None}
    if bounds := options.get("stage_range"):
        settings |= {"num_stages": len(bounds) - 1, "stage_bounds": tuple(bounds)}
    pyramid = PyramidConfig(**settings)
    stages = options.get("stages", pyramid.num_stages)  # the number of stages, or a list with the factor of each
    if (stages if isinstance(stages, int) else len(stages)) != pyramid.num_stages:
        raise ValueError(f"stages {stages} contradict stage_range {list(pyramid.bounds)}")
    return pyramid


def run_scheduler(case: Case) -> None:
    """Stage windows, timesteps and Euler steps of each variant of the pyramid."""
    for variant in case.setting("variants"):
        name, options = f"v{variant['index']}", variant["kwargs"]
        if options.get("num_train_timesteps", NUM_TIMESTEPS) != NUM_TIMESTEPS:
            raise CaseError(f"{case.folder}: {name} has {options['num_train_timesteps']} timesteps; ours are 1000")
        schedule = Schedule(pyramid_of(options))
        _check_windows(case, name, variant, schedule)
        for i, stage in enumerate(schedule.stages):
            case.check(f"{name}.timesteps_per_stage.{i}", stage.timesteps(), 0, TABLE_RTOL)
            case.check(f"{name}.sigmas_per_stage.{i}", local_times(), 0, TABLE_RTOL)
            for steps in case.setting("steps"):
                timesteps, sigmas = (f"{name}.set_timesteps.stage{i}.n{steps}.{x}" for x in ("timesteps", "sigmas"))
                case.check(timesteps, stage.sampling_timesteps(steps), 0, TABLE_RTOL)
                case.check(sigmas, sampling_local_times(steps), 0, TABLE_RTOL)
        velocities, samples = case[f"{name}.step.model_outputs"], case[f"{name}.step.samples"]
        x, ours, times = samples[0], [samples[0]], sampling_local_times(len(velocities)).tolist()
        for i, velocity in enumerate(velocities):
            x = euler_step(x, velocity, times[i], times[i + 1])
            ours.append(x)
        case.check(f"{name}.step.samples", torch.stack(ours), STEP_ATOL)


def _check_windows(case: Case, name: str, variant: dict[str, Any], schedule: Schedule) -> None:
    """Check the sigmas and the weights of the jumps, whose references are in config.json."""
    jumps = [jump_weights(stage, schedule.config.gamma) for stage in schedule.stages[1:]]
    ours = {
        "start_sigmas": [stage.start for stage in schedule.stages],
        "end_sigmas": [stage.end for stage in schedule.stages],
        "ori_start_sigmas": [stage.reached for stage in schedule.stages],
        "renoise_alpha_per_stage_1plus": [alpha for alpha, _ in jumps],
        "renoise_beta_per_stage_1plus": [beta for _, beta in jumps],
    }
    for key, values in ours.items():
        theirs = variant.get(key, [])
        theirs = [theirs[str(i)] for i in range(len(theirs))] if isinstance(theirs, dict) else theirs
        if theirs:
            case.check_value(f"{name}.{key}", torch.tensor(values).double(), theirs, 0, 1e-7)
    for key in ("start_sigmas", "end_sigmas", "ori_start_sigmas"):
        if key not in variant:
            raise CaseError(f"{case.folder}: variant {name} has no {key!r}")


def run_renoise(case: Case) -> None:
    """The jump to each stage, and the covariance of its noise."""
    pyramid = pyramid_of(case.config)
    case.check("upsampled", upsample(case["in.latent"]), 0)
    for i, stage in enumerate(Schedule(pyramid).stages[1:], start=1):
        case.check(f"out.stage{i}", jump(case["in.latent"], stage, case["block_noise"], pyramid.gamma), STEP_ATOL)
    # Ours is another square root of the same covariance, which gives the same distribution.
    factor, blocks = case["scale_tril"].double(), torch.eye(4, dtype=torch.float64).reshape(4, 1, 1, 2, 2)
    root = block_noise(blocks, pyramid.gamma).reshape(4, 4)
    case.check_value("covariance of the noise", root.T @ root, factor @ factor.T, STEP_ATOL)
    case.skip("eps_standard_normal")


def run_train_noise(case: Case) -> None:
    """Normalised latents, their pyramid, and the noisy columns with targets and timesteps."""
    pyramid, kind = pyramid_of(case.config), case.setting("kind")
    if kind not in LATENT_NORMS:
        raise CaseError(f"{case.folder}: kind {kind!r} is none of {', '.join(LATENT_NORMS)}")
    latents = case["in.latent"]
    num_frames = latents.shape[2]
    # The original normalises videos in place, but not images, so for images it recorded latents before normalisation.
    recorded = latents if num_frames == 1 else LATENT_NORMS[kind].normalise(latents)
    case.check_if_present("normalised_latent", recorded, STEP_ATOL)
    for i, stage_latents in enumerate(latent_pyramid(recorded, pyramid.num_stages)):
        case.check_if_present(f"pyramid.{i}", stage_latents, STEP_ATOL)

    units = units_of(case, pyramid, num_frames)
    if units and (expected := case.setting("units_low_mid_high", None)):
        case.check_value("units", torch.tensor(units), expected, 0)
    batch = training_columns(case, pyramid, kind)
    check_columns(case, batch, "out.")
    timestep = batch.timestep.view(-1, len(batch.columns))
    for i, local_t in enumerate(batch.local_t):
        case.check(f"out.ratio.{i}", local_t[:, None, None, None, None], STEP_ATOL)
        case.check(f"out.timestep.{i}", timestep[:, i], STEP_ATOL)


def units_of(case: Case, pyramid: PyramidConfig, num_frames: int) -> tuple[int, ...] | None:
    """Unit that each stage trains; None if the case trains all frames at once."""
    if not case.setting("use_temporal_pyramid", True):
        return None
    return units_to_train(
        call=case.setting("accumulate_steps_before") + 1,
        rank=case.setting("rank"),
        sync_group=case.setting("video_sync_group"),
        max_units=units_in(case.setting("max_temporal_length"), pyramid.frames_per_unit),
        available_units=units_in(num_frames, pyramid.frames_per_unit),
        num_stages=pyramid.num_stages,
    )


def training_columns(case: Case, pyramid: PyramidConfig, kind: str) -> TrainingColumns:
    """Training columns from the case's latents and random draws."""
    latents, replay = LATENT_NORMS[kind].normalise(case["in.latent"]), Replay(case.series("rng."))
    ratios, units = tuple(case.setting("sample_ratios")), units_of(case, pyramid, latents.shape[2])
    batch = noisy_columns(latents, Schedule(pyramid), cast(Noise, replay), ratios, units)
    replay.check_spent()
    return batch


def check_columns(case: Case, batch: TrainingColumns, prefix: str) -> None:
    """Compare clips and targets of each column with `<prefix>noisy.*` and `<prefix>target.*`."""
    for i, clips in enumerate(batch.columns):
        for j, clip in enumerate(clips):
            case.check(f"{prefix}noisy.{i}.{j}", clip, STEP_ATOL)
        case.check(f"{prefix}target.{i}", batch.targets[i], STEP_ATOL)
