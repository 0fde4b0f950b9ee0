"""Division of shots into clips, on a stream of frames.

Only the number of frames matters here, so an item of the stream may be of any type; it stands for one frame.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from pydantic import Field, model_validator

from pyramid_model.config import Config

T = TypeVar("T")


class ClipRules(Config):
    """Lengths of clips, in frames of the source."""

    min_frames: int = Field(
        default=25, ge=1, description="minimum length of a clip in frames; shorter shots give no clip"
    )
    max_frames: int = Field(
        default=241,
        ge=2,
        le=10_000,
        description="maximum length of a clip in frames; longer shots are split into consecutive clips",
    )
    margin_frames: int = Field(
        default=1, ge=0, le=100, description="frames dropped on each side of a cut, where frames may be blended"
    )
    overlap_frames: int = Field(
        default=0, ge=0, description="frames that consecutive clips of a long shot have in common; less than min_frames"
    )

    @model_validator(mode="after")
    def _min_below_max(self) -> "ClipRules":
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"min_frames {self.min_frames} is above max_frames {self.max_frames}: no length would be allowed; "
                "set clips.min_frames or clips.max_frames"
            )
        return self

    @model_validator(mode="after")
    def _overlap_below_min(self) -> "ClipRules":
        if self.overlap_frames >= self.min_frames:
            raise ValueError(
                f"overlap_frames {self.overlap_frames} is not below min_frames {self.min_frames}: a clip could be "
                "overlap only; set clips.overlap_frames or clips.min_frames"
            )
        return self


def next_length(remaining: int, rules: ClipRules) -> int:
    """Length of the next clip when `remaining` frames of the shot remain; 0 if they are too few for a clip.

    If the remainder after a clip of max_frames were shorter than min_frames, the clip is shortened, unless it would be
    shorter than min_frames itself. The following clip starts with the last `overlap_frames` frames of this one.
    """
    if remaining <= rules.max_frames:
        return remaining if remaining >= rules.min_frames else 0
    following_min = rules.min_frames - rules.overlap_frames  # frames that the following clip needs besides the shared
    if rules.min_frames + following_min <= remaining < rules.max_frames + following_min:
        return min(rules.max_frames, remaining - following_min)
    return rules.max_frames


class ShotSplitter(Generic[T]):
    """Splits the frames of one shot into consecutive clips. Yields a frame as soon as its clip is certain.

    A frame that two clips share is yielded twice. The splitter stores about 2 * min_frames frames, and at most
    max_frames, so memory does not grow with the length of the shot.
    """

    def __init__(self, rules: ClipRules):
        self.rules = rules
        self._pending_frames: deque[T] = deque()
        self._released = 0  # number of released frames of the current clip
        self._shared: deque[T] = deque(maxlen=rules.overlap_frames)  # its newest released frames

    def add(self, item: T) -> Iterator[tuple[T, bool]]:
        """Add the next frame of the shot; yields (frame, is_last of its clip) for frames whose clip is now certain."""
        self._pending_frames.append(item)
        rules, num_frames = self.rules, self._released + len(self._pending_frames)
        following_min = rules.min_frames - rules.overlap_frames
        if num_frames >= rules.max_frames + following_min:
            yield from self._release(rules.max_frames)
        elif num_frames >= rules.min_frames:
            # The current clip has at least this many frames, however long the shot is.
            certain = max(rules.min_frames, rules.max_frames - following_min + 1)
            while self._released < certain - 1 and len(self._pending_frames) > 1:
                yield self._next(), False

    def end(self) -> Iterator[tuple[T, bool]]:
        """End the shot: yields the remaining frames of its clips. A remainder that is too short is discarded."""
        while length := next_length(self._released + len(self._pending_frames), self.rules):
            yield from self._release(length)
        self._pending_frames.clear()

    def _next(self) -> T:
        self._released += 1
        item = self._pending_frames.popleft()
        self._shared.append(item)
        return item

    def _release(self, length: int) -> Iterator[tuple[T, bool]]:
        """Yield the rest of the current clip, which has `length` frames in all."""
        while self._released < length:
            yield self._next(), self._released == length
        self._released = 0
        self._pending_frames.extendleft(reversed(self._shared))
        self._shared.clear()


class Streamed(Protocol):
    """Properties of a frame that planning uses."""

    is_corrupt: bool
    is_blended: bool  # with the frames of another shot
    starts_shot: bool


F = TypeVar("F", bound=Streamed)


def plan_clips(frames: Iterable[F], rules: ClipRules) -> Iterator[tuple[int, F, bool]]:
    """Frames of clips, each as (index of the shot, frame, is_last of its clip).

    `margin_frames` frames next to a cut or to blended frames are left out. A blended or corrupt frame ends a clip and
    belongs to none. A frame that two clips share is yielded twice.
    """
    shot, skip = 0, 0
    splitter: ShotSplitter[F] = ShotSplitter(rules)
    margin: deque[F] = deque()  # the newest frames, held back since a cut may follow

    def end_shot() -> Iterator[tuple[int, F, bool]]:
        for item, is_last in splitter.end():
            yield shot, item, is_last

    def add_frame(item: F) -> Iterator[tuple[int, F, bool]]:
        for frame, is_last in splitter.add(item):
            yield shot, frame, is_last

    for frame in frames:
        if frame.starts_shot or frame.is_blended:
            margin.clear()
            yield from end_shot()
            shot, skip = shot + frame.starts_shot, rules.margin_frames
        if frame.is_blended:
            continue
        if frame.is_corrupt:
            while margin:
                yield from add_frame(margin.popleft())
            yield from end_shot()
        elif skip:
            skip -= 1
        else:
            margin.append(frame)
            if len(margin) > rules.margin_frames:
                yield from add_frame(margin.popleft())
    while margin:
        yield from add_frame(margin.popleft())
    yield from end_shot()
