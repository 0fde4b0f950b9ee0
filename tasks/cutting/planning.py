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

    min_frames: int = Field(25, ge=1, description="minimum length of a clip in frames; shorter shots give no clip")
    max_frames: int = Field(
        241,
        ge=2,
        le=10_000,
        description="maximum length of a clip in frames; longer shots are split into consecutive clips",
    )
    margin_frames: int = Field(
        1, ge=0, le=100, description="frames dropped on each side of a cut, where frames may be blended"
    )
    overlap_frames: int = Field(
        0, ge=0, description="frames that consecutive clips of a long shot have in common; less than min_frames"
    )

    @model_validator(mode="after")
    def _min_below_max(self) -> "ClipRules":
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"min_frames {self.min_frames} is above max_frames {self.max_frames}: no clip could be both; "
                "set clips.min_frames or clips.max_frames"
            )
        return self

    @model_validator(mode="after")
    def _overlap_below_min(self) -> "ClipRules":
        if self.overlap_frames >= self.min_frames:
            raise ValueError(
                f"overlap_frames {self.overlap_frames} is not below min_frames {self.min_frames}: a clip could be all "
                "overlap; set clips.overlap_frames or clips.min_frames"
            )
        return self


def next_length(remaining: int, rules: ClipRules) -> int:
    """Length of the next clip when `remaining` frames of the shot are left; 0 when they are too few.

    A remainder shorter than min_frames is avoided by shortening the clip before it, where that stays long enough.
    The clip after this one begins with the last `overlap_frames` of it.
    """
    if remaining <= rules.max_frames:
        return remaining if remaining >= rules.min_frames else 0
    beyond = rules.min_frames - rules.overlap_frames  # what the clip after it needs beside the frames it shares
    if rules.min_frames + beyond <= remaining < rules.max_frames + beyond:
        return min(rules.max_frames, remaining - beyond)
    return rules.max_frames


class ShotSplitter(Generic[T]):
    """Splits the frames of one shot into clips, holding back only those whose clip is not yet certain.

    Clips come one after the other: an item that two of them share comes again with the second one. About
    2 * min_frames items are held, max_frames at most: memory does not grow with the shot.
    """

    def __init__(self, rules: ClipRules):
        self.rules = rules
        self._held: deque[T] = deque()
        self._released = 0  # of the current clip
        self._shared: deque[T] = deque(maxlen=rules.overlap_frames)  # its newest released items

    def add(self, item: T) -> Iterator[tuple[T, bool]]:
        """Take the next frame of the shot; yields (item, whether it is the last of its clip) as they become certain."""
        self._held.append(item)
        rules, known = self.rules, self._released + len(self._held)
        beyond = rules.min_frames - rules.overlap_frames
        if known >= rules.max_frames + beyond:
            yield from self._release(rules.max_frames)
        elif known >= rules.min_frames:
            # However the shot goes on, its next clip has at least this many frames.
            certain = max(rules.min_frames, rules.max_frames - beyond + 1)
            while self._released < certain - 1 and len(self._held) > 1:
                yield self._next(), False

    def end(self) -> Iterator[tuple[T, bool]]:
        """The shot is over: yields what is left of its clips and forgets a remainder that is too short."""
        while length := next_length(self._released + len(self._held), self.rules):
            yield from self._release(length)
        self._held.clear()

    def _next(self) -> T:
        self._released += 1
        item = self._held.popleft()
        self._shared.append(item)
        return item

    def _release(self, length: int) -> Iterator[tuple[T, bool]]:
        """Complete the current clip with `length` frames in all."""
        while self._released < length:
            yield self._next(), self._released == length
        self._released = 0
        self._held.extendleft(reversed(self._shared))
        self._shared.clear()


class Streamed(Protocol):
    """What planning needs to know of a frame."""

    is_corrupt: bool
    is_blended: bool  # with the frames of another shot
    starts_shot: bool


F = TypeVar("F", bound=Streamed)


def plan_clips(frames: Iterable[F], rules: ClipRules) -> Iterator[tuple[int, F, bool]]:
    """The frames that belong to clips, each as (index of its shot, frame, whether it is the last of its clip).

    Frames next to a cut or to blended ones are left out as `margin_frames` says; a blended or corrupt frame ends a clip
    and is in none. A frame that two clips share comes twice.
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
        if frame.starts_shot or frame.is_blended:
            margin.clear()
            yield from ended()
            shot, skip = shot + frame.starts_shot, rules.margin_frames
        if frame.is_blended:
            continue
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
