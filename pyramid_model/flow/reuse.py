"""History that need not be computed again while a clip is sampled."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from pyramid_model.dit.memory import HistoryMemory
from pyramid_model.dit.packing import frame_ends
from pyramid_model.dit.transformer import DiT, size_of
from pyramid_model.text import TextFeatures

MAX_BYTES = 2**30  # with it, sampling 10 s at 768x1280 still peaks below what one dense mask costs


class HistoryReuse:
    """A DiT that remembers, over the calls of one batch of clips, what it made of text and history.

    No frame sees a later one. So what the blocks make of text and history depends on the timestep they are told and on
    the resolutions at which history is shown, and not on the noisy frame.

    With shared history time, history is told the timestep of the noisy frame: another one at every step. But a frame
    that has come down to the coarsest resolution stays there, and every unit walks through the same steps. What the
    frame is at a stage and step is then the same in all later units, and is computed once: exactly.

    With clean history time, history is told 0 always, so it is the same at all steps of a stage: exact, too.

    Args:
        dit: predicts the velocity.
        refresh_every: steps for which history that is told the timestep of the first of them is used. 1 is exact.
            More is an approximation with shared history time (see `errors`) and changes nothing with a clean one.
        max_bytes: memory that may be held from one unit to the next; what does not fit is computed again.

    Attributes:
        errors: how far reuse for more than one step moved the velocity, relative to its norm, wherever it was measured:
            at each stage after 1, 2, 4, 8, … frames of history, where it is at its largest.
    """

    def __init__(self, dit: DiT, refresh_every: int = 1, max_bytes: int = MAX_BYTES):
        if refresh_every < 1:
            raise ValueError(f"refresh_every {refresh_every}: must be at least 1 step, which is exact")
        self.dit, self.num_blocks, self.max_bytes = dit, len(dit.blocks), max_bytes
        self.exact = dit.config.clean_history or refresh_every == 1
        self.period = sys.maxsize if dit.config.clean_history else refresh_every
        self.memories: dict[tuple[int, int, int], HistoryMemory] = {}
        self.errors: list[float] = []

    def velocity(
        self, clips: list[Tensor], timestep: Tensor, text: TextFeatures, stage: int, step: int, num_steps: int
    ) -> Tensor:
        """Velocity of the last clip (b c t h w), which follows its history.

        Args:
            clips: one column of `DiT.forward`.
            timestep: (b,).
            text: b rows, the same in every call with as many rows.
            stage: that the clip is at.
            step: of the stage's num_steps; the steps of a stage are the same in every unit that has history.
            num_steps: Euler steps of the stage.
        """
        *history, noisy = clips
        if not history or not self.dit.config.causal:
            return self.dit([clips], timestep, text)[0]
        key = (stage, step // self.period, len(noisy))
        if key not in self.memories:
            self.memories[key] = HistoryMemory(self.num_blocks)
        memory = self.memories[key]
        lasting = min(_settled_frames(history, stage, noisy), self._affordable(clips, text, memory))
        remember = max(memory.num_frames, lasting) if self.period == 1 else sum(clip.shape[2] for clip in history)
        (velocity,) = self.dit([clips], timestep, text, memory, remember)
        if (step + 1) % self.period == 0 or step + 1 == num_steps:
            self._measure(velocity, clips, timestep, text, step)
            memory.cut(lasting)
        return velocity

    def _affordable(self, clips: list[Tensor], text: TextFeatures, memory: HistoryMemory) -> int:
        """First frames that one memory may hold, by what the others hold."""
        a_row = 2 * self.dit.config.dim * self.num_blocks * clips[0].element_size()  # a token's keys and values
        held = sum(
            rows * other.ends[-1] for (*_, rows), other in self.memories.items() if other is not memory and other.ends
        )
        ends = frame_ends(tuple(size_of(clip) for clip in clips), max(text.lengths))
        return sum((len(clips[0]) * end + held) * a_row <= self.max_bytes for end in ends)

    def _measure(self, velocity: Tensor, clips: list[Tensor], timestep: Tensor, text: TextFeatures, step: int) -> None:
        """Compare the last step of a stage's first period with the exact one, now and then."""
        num_frames = sum(clip.shape[2] for clip in clips[:-1])
        if self.exact or step == 0 or step >= self.period or num_frames & (num_frames - 1):
            return
        (exact,) = self.dit([clips], timestep, text)
        self.errors.append(float(torch.dist(velocity.float(), exact.float()) / exact.float().norm()))


def _settled_frames(history: list[Tensor], stage: int, noisy: Tensor) -> int:
    """Frames of history at the coarsest resolution, which they keep."""
    coarsest = noisy.shape[3] >> stage
    return sum(clip.shape[2] for clip in history if clip.shape[3] == coarsest)
