"""Which frames of a shot become clips, decided while the frames stream by.

Only counts matter here: the items that pass through may be anything, one a frame.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from pydantic import Field, model_validator

from pyramid_model.config import Config

T = TypeVar("T")


class ClipRules(Config):
    """Lengths of clips, in frames of the source."""

    min_frames: int = Field(25, ge=2, description="shorter clips are not made; shorter shots give none")
    max_frames: int = Field(241, ge=2, le=10_000, description="longer shots are split into consecutive clips")
    margin_frames: int = Field(
        1, ge=0, le=100, description="frames dropped on either side of a cut, where frames may be blended"
    )

    @model_validator(mode="after")
    def _min_below_max(self) -> "ClipRules":
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"min_frames {self.min_frames} is above max_frames {self.max_frames}: no clip could be both; "
                "set clips.min_frames or clips.max_frames"
            )
        return self


def next_length(remaining: int, rules: ClipRules) -> int:
    """Length of the next clip when `remaining` frames of the shot are left; 0 when they are too few.

    A remainder shorter than min_frames is avoided by shortening the clip before it, where that stays long enough.
    """
    if remaining <= rules.max_frames:
        return remaining if remaining >= rules.min_frames else 0
    if rules.min_frames * 2 <= remaining < rules.max_frames + rules.min_frames:
        return min(rules.max_frames, remaining - rules.min_frames)
    return rules.max_frames


class ShotSplitter(Generic[T]):
    """Splits the frames of one shot into clips, holding back only those whose clip is not yet certain.

    About 2 * min_frames items are held, max_frames at most: memory does not grow with the shot.
    """

    def __init__(self, rules: ClipRules):
        self.rules = rules
        self._held: deque[T] = deque()
        self._released = 0  # of the current clip

    def add(self, item: T) -> Iterator[tuple[T, bool]]:
        """Take the next frame of the shot; yields (item, whether it is the last of its clip) as they become certain."""
        self._held.append(item)
        rules, known = self.rules, self._released + len(self._held)
        if known >= rules.max_frames + rules.min_frames:
            yield from self._release(rules.max_frames)
        elif known >= rules.min_frames:
            # However the shot goes on, its next clip has at least this many frames.
            certain = max(rules.min_frames, rules.max_frames - rules.min_frames + 1)
            while self._released < certain - 1 and len(self._held) > 1:
                self._released += 1
                yield self._held.popleft(), False

    def end(self) -> Iterator[tuple[T, bool]]:
        """The shot is over: yields what is left of its clips and forgets a remainder that is too short."""
        while length := next_length(self._released + len(self._held), self.rules):
            yield from self._release(length)
        self._held.clear()

    def _release(self, length: int) -> Iterator[tuple[T, bool]]:
        """Complete the current clip with `length` frames in all."""
        while self._released < length:
            self._released += 1
            yield self._held.popleft(), self._released == length
        self._released = 0


class Streamed(Protocol):
    """What planning needs to know of a frame."""

    is_corrupt: bool
    starts_shot: bool


F = TypeVar("F", bound=Streamed)


def plan_clips(frames: Iterable[F], rules: ClipRules) -> Iterator[tuple[int, F, bool]]:
    """The frames that belong to clips, each as (index of its shot, frame, whether it is the last of its clip).

    Frames next to a cut are left out as `margin_frames` says; a corrupt frame ends a clip and is in none.
    """
    shot, skip = 0, 0
    splitter: ShotSplitter[F] = ShotSplitter(rules)
    margin: deque[F] = deque()  # the newest frames, which may turn out to lie before a cut

    def ended() -> Iterator[tuple[int, F, bool]]:
        for item, is_last in splitter.end():
            yield shot, item, is_last

    def added(item: F) -> Iterator[tuple[int, F, bool]]:
        for certain, is_last in splitter.add(item):
            yield shot, certain, is_last

    for frame in frames:
        if frame.starts_shot:
            margin.clear()
            yield from ended()
            shot, skip = shot + 1, rules.margin_frames
        if frame.is_corrupt:
            while margin:
                yield from added(margin.popleft())
            yield from ended()
        elif skip:
            skip -= 1
        else:
            margin.append(frame)
            if len(margin) > rules.margin_frames:
                yield from added(margin.popleft())
    while margin:
        yield from added(margin.popleft())
    yield from ended()
