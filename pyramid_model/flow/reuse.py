"""Reuse of the KV cache of text and history between the calls that sample a clip."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from pyramid_model.dit.kv_cache import KVCache
from pyramid_model.dit.packing import frame_ends
from pyramid_model.dit.transformer import DiT, size_of
from pyramid_model.text import TextFeatures

MAX_BYTES = 2**30  # with this, sampling 10 s at 768x1280 needs less memory at its peak than one dense attention mask


class HistoryReuse:
    """A DiT with KV caches that are reused over all calls that sample one batch of clips.

    No frame attends to a later one. Keys and values of text and history therefore depend on the timestep and on the
    resolutions of the history, but not on the noisy frame.

    With shared history time, the history has the timestep of the noisy frame, which changes at every step. A history
    frame at the coarsest resolution keeps this resolution in all later units, and all units use the same timesteps.
    Its keys and values at a given stage and step are therefore equal in all later units, and are computed once. This is
    exact.

    With clean history time, the timestep of the history is always 0, so its keys and values are the same at all steps
    of a stage. This is exact too.

    Args:
        dit: predicts the velocity.
        refresh_every: the keys and values of the history are computed at every step whose number is a multiple of this,
            and reused until the next one. 1 is exact. A larger number is an approximation with shared history time (see
            `errors`), and has no effect with clean history time.
        max_bytes: most bytes of KV caches that are kept for the next unit. Frames that do not fit are computed again.

    Attributes:
        kv_caches: by stage, period of `refresh_every` steps, and batch rows.
        errors: change of the velocity caused by `refresh_every` > 1, relative to its norm. Measured at the last step of
            a stage's first period, where it is largest, after 1, 2, 4, 8, … frames of history.
    """

    def __init__(self, dit: DiT, refresh_every: int = 1, max_bytes: int = MAX_BYTES):
        if refresh_every < 1:
            raise ValueError(f"refresh_every {refresh_every}: must be at least 1 (computes history at every step)")
        self.dit, self.num_blocks, self.max_bytes = dit, len(dit.blocks), max_bytes
        self.exact = dit.config.clean_history or refresh_every == 1
        self.period = sys.maxsize if dit.config.clean_history else refresh_every
        self.kv_caches: dict[tuple[int, int, int], KVCache] = {}
        self.errors: list[float] = []

    def velocity(
        self, clips: list[Tensor], timestep: Tensor, text: TextFeatures, stage: int, step: int, num_steps: int
    ) -> Tensor:
        """Velocity of the last clip, (b c t h w).

        Args:
            clips: one column, as in `DiT.forward`: history, then the noisy clip.
            timestep: (b,).
            text: b rows; the same text in every call with this number of rows.
            stage: stage of the noisy clip.
            step: Euler step within the stage, from 0.
            num_steps: Euler steps of the stage; the same in every unit that has history.
        """
        *history, noisy = clips
        if not history or not self.dit.config.causal:
            return self.dit([clips], timestep, text)[0]
        key = (stage, step // self.period, len(noisy))
        if key not in self.kv_caches:
            self.kv_caches[key] = KVCache(self.num_blocks)
        kv_cache = self.kv_caches[key]
        # Number of frames that stay in the cache for the next unit.
        num_kept = min(_coarsest_frames(history, stage, noisy), self._max_frames(clips, text, kv_cache))
        num_cached = max(kv_cache.num_frames, num_kept) if self.period == 1 else sum(clip.shape[2] for clip in history)
        (velocity,) = self.dit([clips], timestep, text, kv_cache, num_cached)
        if (step + 1) % self.period == 0 or step + 1 == num_steps:
            self._measure(velocity, clips, timestep, text, step)
            kv_cache.cut(num_kept)
        return velocity

    def _max_frames(self, clips: list[Tensor], text: TextFeatures, kv_cache: KVCache) -> int:
        """Number of frames that fit into this cache within `max_bytes`, given the size of the other caches."""
        token_bytes = 2 * self.dit.config.dim * self.num_blocks * clips[0].element_size()  # keys and values
        other_tokens = sum(
            rows * other.ends[-1]
            for (*_, rows), other in self.kv_caches.items()
            if other is not kv_cache and other.ends
        )
        ends = frame_ends(tuple(size_of(clip) for clip in clips), max(text.lengths))
        return sum((len(clips[0]) * end + other_tokens) * token_bytes <= self.max_bytes for end in ends)

    def _measure(self, velocity: Tensor, clips: list[Tensor], timestep: Tensor, text: TextFeatures, step: int) -> None:
        """Append to `errors` at the last step of a stage's first period, if the history has 1, 2, 4, 8, … frames."""
        num_frames = sum(clip.shape[2] for clip in clips[:-1])
        is_power_of_2 = num_frames & (num_frames - 1) == 0
        if self.exact or step == 0 or step >= self.period or not is_power_of_2:
            return
        (exact,) = self.dit([clips], timestep, text)
        self.errors.append(float(torch.dist(velocity.float(), exact.float()) / exact.float().norm()))


def _coarsest_frames(history: list[Tensor], stage: int, noisy: Tensor) -> int:
    """Number of history frames at the coarsest resolution, which no longer changes."""
    coarsest = noisy.shape[3] >> stage
    return sum(clip.shape[2] for clip in history if clip.shape[3] == coarsest)
