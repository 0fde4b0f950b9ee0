"""FLOPs of the DiTs in closed form, from their configs and the sizes of clips.

The matrix products of linear layers and of attention are counted, two FLOPs per multiply-add. Norms, activations
and rotations are not counted, because memory bandwidth limits them.

Attention is counted by pairs of a query and a key that may attend: text and first frame attend to each other, and a
later frame attends to the text, to earlier frames and to itself. `dense` counts all pairs, as one masked product over
the whole sequence computes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

import torch

from pyramid_model.config import PATCH, MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.branches import Branches, clips_of
from pyramid_model.dit.packing import Size
from pyramid_model.dit.transformer import TIMESTEP_CHANNELS, size_of
from pyramid_model.flow.history import history_clips
from pyramid_model.flow.path import units_in
from pyramid_model.flow.sampler import Sampling
from pyramid_model.train.config import DiTLossConfig

Config = MiniFluxConfig | MMDiTConfig


@dataclass(frozen=True)
class Flops:
    """FLOPs of linear layers and of attention."""

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """Sum of both."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.linear * times, self.attention * times)


@dataclass(frozen=True)
class Reuse:
    """Reuse of the history's keys and values in a sampler, see `flow.reuse.HistoryReuse`.

    across_units: keep those of the oldest frames, whose resolution does not change any more, from unit to unit. Each
        step of a stage has its own cache, so this is exact with shared history time too.
    refresh_every: number of steps that use the same keys and values: 1 = computed at each step; None = once per stage,
        which is exact with clean history time only.
    """

    across_units: bool = False
    refresh_every: int | None = 1

    def __post_init__(self):
        if self.refresh_every is not None and self.refresh_every < 1:
            raise ValueError(f"refresh_every {self.refresh_every}: must be at least 1 step, or None for once per stage")


def call_flops(
    config: Config,
    columns: Sequence[Sequence[Size]],
    num_text: int,
    batch: int = 1,
    dense: bool = False,
    branches: Sequence[Branches] = (),
) -> Flops:
    """FLOPs of one forward call of a DiT.

    Args:
        config: of the DiT.
        columns: t, h and w in latents of the clips of each column, the noisy clip last.
        num_text: text tokens of a row, padding included.
        batch: number of samples; each has one row per column.
        dense: count all pairs of tokens, including those that must not attend.
        branches: of each column, as in `DiT.forward`.
    """
    total = Flops()
    for column, own in zip(columns, branches or [()] * len(columns), strict=True):
        shared = frame_tokens(column[:1]) if own else []
        total += _part(config, shared, num_text, 0, len(shared), dense) if own else Flops()
        starts = [branch.num_shared for branch in own] or [0]
        for start, clips in zip(starts, clips_of(column, own) if own else [column], strict=True):
            frames = shared[:start] + frame_tokens(clips)
            total += _part(config, frames, num_text, start, len(frames), dense)
            total += _ends(config, sum(frame_tokens(clips[-1:])))
    return total * batch


def train_flops(
    config: Config,
    columns: Sequence[Sequence[Size]],
    num_text: int,
    batch: int = 1,
    dense: bool = False,
    branches: Sequence[Branches] = (),
) -> Flops:
    """FLOPs of a forward and a backward pass; the backward pass needs twice as many as the forward pass.

    Activation recomputation is not counted, as usual for MFU. Arguments as in `call_flops`.
    """
    return call_flops(config, columns, num_text, batch, dense, branches) * 3


def sample_flops(
    config: Config, pyramid: PyramidConfig, loss: DiTLossConfig, shape: tuple[int, ...], num_text: int
) -> float:
    """FLOPs that a training needs for one sample in one step, as a mean over its stages and units.

    This is the cost model of batches. It is far from proportional to the tokens of the clip, because a step trains one
    unit whose history is compressed: sixteen frames of 384x640 px cost 2.6 times as much as one.

    Args:
        config: of the DiT.
        pyramid: stages and units.
        loss: samples of each stage; with or without units.
        shape: (c t h w) of the latent.
        num_text: text tokens.
    """
    size, ratios = (shape[1], shape[2], shape[3]), loss.ratios(pyramid)
    units = units_in(size[0], pyramid.frames_per_unit) if loss.autoregressive else 1
    is_packed = loss.packs(config)
    num_trained = min(units, loss.packed_units or units) if is_packed else 1
    total = 0
    for stage, ratio in enumerate(ratios):
        for unit in range(units):
            num_frames = (pyramid.frames_per_unit if unit else 1) if loss.autoregressive else size[0]
            noisy = frame_tokens([(num_frames, *_sides(size, pyramid, stage))])
            history = history_frames(size, pyramid, stage, unit)
            total += (
                ratio * _unit(config, history, noisy, num_text, is_packed and unit > stage, unit + 1 == units).total
            )
    return 3 * total * num_trained / units / sum(ratios)


def _unit(
    config: Config, history: list[int], noisy: list[int], num_text: int, is_branch: bool, with_shared: bool
) -> Flops:
    """FLOPs of one unit, per row. history, noisy: tokens of each frame.

    is_branch: the history at the coarsest stage is computed by another unit (`flow.packed`), unless with_shared.
    """
    frames = history + noisy
    start = history.count(history[0]) if is_branch else 0
    flops = _part(config, frames, num_text, start, len(frames), dense=False) + _ends(config, sum(noisy))
    return flops + _part(config, frames, num_text, 0, start, dense=False) if is_branch and with_shared else flops


def generation_flops(
    config: Config,
    sampling: Sampling,
    num_text: int,
    batch: int = 1,
    num_given: int = 0,
    reuse: Reuse | None = None,
    dense: bool = False,
) -> Flops:
    """FLOPs of the DiT for sampling whole clips.

    Args:
        config, num_text, dense: as in `call_flops`.
        sampling: size, steps and guidance. A scale other than 1 doubles the rows of its unit.
        batch: number of clips.
        num_given: units that the clip starts with, such as an encoded image.
        reuse: reuse of the history; None: none. `across_units` assumes guidance to be on, or off, for all units.
    """
    pyramid, size = sampling.pyramid, sampling.size
    total, previous = Flops(), [[] for _ in range(pyramid.num_stages)]
    for unit in range(num_given, sampling.num_units):
        rows = batch * (1 if sampling.guidance[unit] == 1 else 2)
        for stage, num_steps in enumerate(sampling.steps if unit else sampling.first_steps):
            history = history_frames(size, pyramid, stage, unit)
            frames = sampling.frames_of(unit)
            noisy = frame_tokens([(frames.stop - frames.start, *_sides(size, pyramid, stage))])
            flops = _stage(config, history, noisy, previous[stage], num_text, num_steps, reuse or Reuse(), dense)
            total += flops * rows
            previous[stage] = history
    return total


def history_frames(size: Size, pyramid: PyramidConfig, stage: int, unit: int) -> list[int]:
    """Number of tokens of each history frame, oldest first.

    Args:
        size: t, h and w of the clip in latents.
        pyramid: stages and units.
        stage: of the unit.
        unit: number of the unit that the history conditions, from 0.
    """
    if unit == 0:
        return []
    num_frames = 1 + (unit - 1) * pyramid.frames_per_unit
    sides = [_sides(size, pyramid, s) for s in range(pyramid.num_stages)]
    past = [torch.empty(1, 1, num_frames, h, w, device="meta") for h, w in sides]  # only the shapes are used
    return frame_tokens([size_of(clip) for clip in history_clips(past, stage, unit, pyramid.frames_per_unit)])


def frame_tokens(clips: Sequence[Size]) -> list[int]:
    """Number of image tokens of each frame; clips: t, h and w of consecutive clips in latents."""
    return [(h // PATCH) * (w // PATCH) for t, h, w in clips for _ in range(t)]


def mfu(flops: float, seconds: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: the share of a device's peak performance that was reached, 0..1.

    Args:
        flops: number of operations.
        seconds: time that they took.
        peak_flops: peak performance of the device in the dtype used, operations per second.

    Raises:
        ValueError: seconds or peak_flops is not positive.
    """
    if seconds <= 0 or peak_flops <= 0:
        raise ValueError(f"seconds {seconds} and peak_flops {peak_flops} must both be more than 0")
    return flops / seconds / peak_flops


def matrix_rate(device: torch.device, dtype: torch.dtype, tries: int = 5) -> float:
    """Measured operations per second of a product of two square matrices, the most that a DiT can reach; best of all.

    The matrices have 8192 rows on a GPU and 512 on a CPU, which takes milliseconds.
    """
    is_gpu = device.type == "cuda"
    size = 8192 if is_gpu else 512
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(tries + 1):  # the first product also loads the kernel
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        if is_gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _stage(
    config: Config,
    history: list[int],
    noisy: list[int],
    previous: list[int],
    num_text: int,
    num_steps: int,
    reuse: Reuse,
    dense: bool,
) -> Flops:
    """FLOPs of all steps of one stage of one unit, per row.

    history, noisy: tokens of each frame; previous: of each history frame of the previous unit at this stage.
    """
    frames = history + noisy
    num_cached = _num_unchanged(previous, history) if reuse.across_units else 0
    num_fills = 1 if reuse.refresh_every is None else math.ceil(num_steps / reuse.refresh_every)
    fill = _part(config, frames, num_text, num_cached, len(history), dense)
    step = _part(config, frames, num_text, len(history), len(frames), dense)
    with_text = num_steps if not history else num_fills * (num_cached == 0)
    ends = _ends(config, sum(noisy)) * with_text + _ends(config, sum(noisy), False) * (num_steps - with_text)
    return fill * num_fills + step * num_steps + ends


def _num_unchanged(previous: list[int], history: list[int]) -> int:
    """Number of leading frames that have the same resolution in both histories.

    0 if frame 0 changes: the text attends to frame 0, so the keys and values of the text change too.
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(previous, history, strict=False)))


def _sides(size: Size, pyramid: PyramidConfig, stage: int) -> tuple[int, int]:
    """Height and width in latents at a stage."""
    factor = 2 ** (pyramid.num_stages - 1 - stage)
    return size[1] // factor, size[2] // factor


def _part(config: Config, frames: list[int], num_text: int, start: int, stop: int, dense: bool) -> Flops:
    """FLOPs of the tokens of frames start..stop, which attend to all tokens up to the end of their own frame.

    Text tokens are counted with frame 0, since the two attend to each other.
    """
    lengths = [num_text + frames[0], *frames[1:]]
    num_keys = [sum(lengths)] * len(lengths) if dense or not config.causal else list(accumulate(lengths))
    pairs = sum(n * keys for n, keys in zip(lengths[start:stop], num_keys[start:stop], strict=True))
    num_image, num_text = sum(frames[start:stop]), num_text if start == 0 < stop else 0
    image, text, blocks = _block_weights(config)
    image += config.latent_channels * PATCH**2 * config.dim  # patch_in
    text += config.text_dim * config.dim  # text_in
    return Flops(2 * (num_image * image + num_text * text), 4 * pairs * config.dim * blocks)


def _block_weights(config: Config) -> tuple[int, int, int]:
    """(weights used per image token, weights used per text token, number of blocks), over all blocks."""
    whole = 12 * config.dim**2  # queries, keys, values, output: 4; MLP: 8
    if isinstance(config, MiniFluxConfig):
        blocks = config.num_double_blocks + config.num_single_blocks
        return blocks * whole, blocks * whole, blocks
    last_text = 3 * config.dim**2  # queries, keys and values: the last block computes no text output
    return config.num_blocks * whole, (config.num_blocks - 1) * whole + last_text, config.num_blocks


def _ends(config: Config, num_noisy: int, with_text: bool = True) -> Flops:
    """FLOPs outside the token stream, per row and call: conditioning, modulations, and the output layer.

    num_noisy: tokens of the noisy clip. with_text: whether text tokens are computed, which then need modulations.
    """
    d, double = config.dim, config.num_double_blocks if isinstance(config, MiniFluxConfig) else config.num_blocks
    vectors = 6 * double * (1 + with_text)
    if isinstance(config, MiniFluxConfig):
        vectors += 3 * config.num_single_blocks
    else:
        vectors -= 4 * with_text  # the last block only shifts and scales the text
    num_timesteps = 2 if config.clean_history else 1  # clean history has its own timestep and modulations
    pooled, timestep = (channels * d + d**2 for channels in (config.pooled_dim, TIMESTEP_CHANNELS))
    out = num_noisy * d * config.latent_channels * PATCH**2
    return Flops(2 * (pooled + num_timesteps * (timestep + vectors * d**2) + 2 * d**2 + out))
