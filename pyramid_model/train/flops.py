"""How many floating-point operations the DiTs need, counted from their configs and from sizes.

Counted are matrix products, those of linear layers and those of attention; a multiply-add is two operations. Norms,
activations and rotations are left out: they take memory traffic rather than operations.

Attention is counted by the pairs of a query and a key that may meet: text and the first frame see each other, and a
later frame sees text, the frames before it and itself. `dense` counts every pair, which is what one product over the
whole sequence computes, whatever its mask hides afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

import torch

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.packing import PATCH, Size
from pyramid_model.dit.transformer import TIMESTEP_CHANNELS, size_of
from pyramid_model.flow.history import history_clips
from pyramid_model.flow.sampler import Sampling

Config = MiniFluxConfig | MMDiTConfig


@dataclass(frozen=True)
class Flops:
    """Operations of linear layers and of attention."""

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.linear * times, self.attention * times)


@dataclass(frozen=True)
class Reuse:
    """Which keys and values of the history a sampler keeps instead of computing them again.

    across_units: those of the oldest frames, whose resolution did not change since the unit before. Each step of a
        stage keeps its own, so this is exact even where the history is told the timestep of its step.
    refresh_every: steps of a stage after which the history is computed again: 1 = at each step; None = once a stage,
        which is exact only for a model whose history is told a timestep of its own.
    """

    across_units: bool = False
    refresh_every: int | None = 1

    def __post_init__(self):
        if self.refresh_every is not None and self.refresh_every < 1:
            raise ValueError(f"refresh_every {self.refresh_every}: give a number of steps, at least 1, or None")


def call_flops(
    config: Config, columns: Sequence[Sequence[Size]], num_text: int, batch: int = 1, dense: bool = False
) -> Flops:
    """Operations of one forward call of a DiT.

    Args:
        config: of the DiT.
        columns: t, h and w in latents of the clips of each column, the noisy one last.
        num_text: text tokens of a row, padding included.
        batch: samples; each has a row a column.
        dense: count every pair of tokens, also those that may not attend.
    """
    total = Flops()
    for column in columns:
        frames, noisy = frame_tokens(column), frame_tokens(column[-1:])
        total += _part(config, frames, num_text, 0, len(frames), dense) + _ends(config, sum(noisy))
    return total * batch


def train_flops(
    config: Config, columns: Sequence[Sequence[Size]], num_text: int, batch: int = 1, dense: bool = False
) -> Flops:
    """Operations of a forward and a backward pass, which is twice the forward one. Arguments as in `call_flops`.

    What is computed a second time to save memory is not counted, as usual for MFU.
    """
    return call_flops(config, columns, num_text, batch, dense) * 3


def generation_flops(
    config: Config,
    sampling: Sampling,
    num_text: int,
    batch: int = 1,
    num_given: int = 0,
    reuse: Reuse | None = None,
    dense: bool = False,
) -> Flops:
    """Operations of the DiT in sampling whole clips.

    Args:
        config, num_text, dense: as in `call_flops`.
        sampling: size, steps and guidance. A scale other than 1 doubles the rows of its unit.
        batch: clips.
        num_given: units that the clip starts with, such as an encoded image.
        reuse: what is kept of the history; None: nothing. Across units, guidance is taken to be on or off for all.
    """
    pyramid, size = sampling.pyramid, sampling.size
    total, before = Flops(), [[] for _ in range(pyramid.num_stages)]
    for unit in range(num_given, sampling.num_units):
        rows = batch * (1 if sampling.guidance[unit] == 1 else 2)
        for stage, num_steps in enumerate(sampling.steps if unit else sampling.first_steps):
            history = history_frames(size, pyramid, stage, unit)
            frames = sampling.frames_of(unit)
            noisy = frame_tokens([(frames.stop - frames.start, *_sides(size, pyramid, stage))])
            total += _stage(config, history, noisy, before[stage], num_text, num_steps, reuse or Reuse(), dense) * rows
            before[stage] = history
    return total


def history_frames(size: Size, pyramid: PyramidConfig, stage: int, unit: int) -> list[int]:
    """Tokens of each history frame, oldest first, of a unit (0 = the first) at a stage. size: t, h, w of the clip."""
    if unit == 0:
        return []
    num_frames = 1 + (unit - 1) * pyramid.frames_per_unit
    sides = [_sides(size, pyramid, s) for s in range(pyramid.num_stages)]
    past = [torch.empty(1, 1, num_frames, h, w, device="meta") for h, w in sides]  # shapes alone
    return frame_tokens([size_of(clip) for clip in history_clips(past, stage, unit, pyramid.frames_per_unit)])


def frame_tokens(clips: Sequence[Size]) -> list[int]:
    """Image tokens of each frame of clips of the sizes t, h, w in latents."""
    return [(h // PATCH) * (w // PATCH) for t, h, w in clips for _ in range(t)]


def mfu(flops: float, seconds: float, peak_flops: float) -> float:
    """Share of a device's peak that was reached, 0..1.

    Args:
        flops: operations done.
        seconds: time they took.
        peak_flops: operations a second that the device can do at most, in the dtype used.

    Raises:
        ValueError: no time, or no peak.
    """
    if seconds <= 0 or peak_flops <= 0:
        raise ValueError(f"{seconds} s at a peak of {peak_flops} operations a second: both must be more than 0")
    return flops / seconds / peak_flops


def _stage(
    config: Config,
    history: list[int],
    noisy: list[int],
    before: list[int],
    num_text: int,
    num_steps: int,
    reuse: Reuse,
    dense: bool,
) -> Flops:
    """Operations of all steps of one stage of one unit, for a row. before: history of the unit before at this stage."""
    frames = history + noisy
    kept = _unchanged(before, history) if reuse.across_units else 0
    num_fills = 1 if reuse.refresh_every is None else math.ceil(num_steps / reuse.refresh_every)
    fill = _part(config, frames, num_text, kept, len(history), dense)
    step = _part(config, frames, num_text, len(history), len(frames), dense)
    with_text = num_steps if not history else num_fills * (kept == 0)
    ends = _ends(config, sum(noisy)) * with_text + _ends(config, sum(noisy), False) * (num_steps - with_text)
    return fill * num_fills + step * num_steps + ends


def _unchanged(before: list[int], history: list[int]) -> int:
    """Leading frames of the same resolution in both. Frame 0 must be one of them, or the text that sees it changed."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, history, strict=False)))


def _sides(size: Size, pyramid: PyramidConfig, stage: int) -> tuple[int, int]:
    """Height and width in latents at a stage."""
    factor = 2 ** (pyramid.num_stages - 1 - stage)
    return size[1] // factor, size[2] // factor


def _part(config: Config, frames: list[int], num_text: int, start: int, stop: int, dense: bool) -> Flops:
    """Operations of the tokens of frames start..stop, whose keys are all tokens up to their own frame.

    The text goes with frame 0: each of the two sees the other.
    """
    lengths = [num_text + frames[0], *frames[1:]]
    seen = [sum(lengths)] * len(lengths) if dense or not config.causal else list(accumulate(lengths))
    pairs = sum(n * keys for n, keys in zip(lengths[start:stop], seen[start:stop], strict=True))
    num_image, num_text = sum(frames[start:stop]), num_text if start == 0 < stop else 0
    image, text, blocks = _block_weights(config)
    image += config.latent_channels * PATCH**2 * config.dim  # patch_in
    text += config.text_dim * config.dim  # text_in
    return Flops(2 * (num_image * image + num_text * text), 4 * pairs * config.dim * blocks)


def _block_weights(config: Config) -> tuple[int, int, int]:
    """Matrix elements that an image token and a text token meet in the blocks, and the number of blocks."""
    whole = 12 * config.dim**2  # queries, keys, values, output: 4; MLP: 8
    if isinstance(config, MiniFluxConfig):
        blocks = config.num_double_blocks + config.num_single_blocks
        return blocks * whole, blocks * whole, blocks
    last_text = 3 * config.dim**2  # queries, keys and values: nothing comes of the last block's text
    return config.num_blocks * whole, (config.num_blocks - 1) * whole + last_text, config.num_blocks


def _ends(config: Config, num_noisy: int, with_text: bool = True) -> Flops:
    """Operations of what a row does once a call: timestep and pooled text to modulations, and tokens to velocity.

    with_text: whether text tokens are computed; without them they need no modulations.
    """
    d, double = config.dim, config.num_double_blocks if isinstance(config, MiniFluxConfig) else config.num_blocks
    vectors = 6 * double * (1 + with_text)
    if isinstance(config, MiniFluxConfig):
        vectors += 3 * config.num_single_blocks
    else:
        vectors -= 4 * with_text  # nothing comes of the last block's text, so it is only shifted and scaled
    told = 2 if config.clean_history else 1  # timesteps: history may have its own, and modulations by it
    pooled, timestep = (channels * d + d**2 for channels in (config.pooled_dim, TIMESTEP_CHANNELS))
    out = num_noisy * d * config.latent_channels * PATCH**2
    return Flops(2 * (pooled + told * (timestep + vectors * d**2) + 2 * d**2 + out))
