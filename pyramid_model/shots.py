"""Where one shot ends and the next begins: PySceneDetect's detectors, fed with small frames as they are decoded."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pyramid_model.config import Config

if TYPE_CHECKING:
    from pyramid_model.footage import VideoProbe

ANALYSIS_WIDTH = 256  # px of the longer side: detection needs no more, and larger frames cost more than their decoding


class ShotsConfig(Config):
    """How cuts are found."""

    method: Literal["adaptive", "content"] = Field(
        "adaptive", description="PySceneDetect detector: adaptive forgives fast camera motion, content does not"
    )
    threshold: float | None = Field(None, gt=0, description="empty: PySceneDetect's own (adaptive 3, content 27)")
    # PySceneDetect's 15 would hide a cut that follows another one soon, and a clip would contain it. Here every cut
    # counts, and shots that are too short give no clip.
    min_shot_frames: int = Field(1, ge=1, description="cuts nearer than this many frames to the one before are ignored")


class CutDetector:
    """Finds cuts in a stream of frames; a frame is decided once `delay` more frames have been seen."""

    def __init__(self, config: ShotsConfig):
        from scenedetect.common import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector, ContentDetector

        name, kind = {
            "adaptive": ("adaptive_threshold", AdaptiveDetector),
            "content": ("threshold", ContentDetector),
        }[config.method]
        own = {} if config.threshold is None else {name: config.threshold}
        self._detector: Any = kind(min_scene_len=config.min_shot_frames, **own)
        self._timecode = FrameTimecode
        self._num_seen = 0

    @property
    def delay(self) -> int:
        """How many frames later a cut may still be reported."""
        return self._detector.event_buffer_length

    def add(self, small: np.ndarray) -> list[int]:
        """Look at the next frame, BGR uint8 (h w c); the cuts found now, each the first frame of a new shot."""
        # Cuts are counted in frames, so the rate is arbitrary.
        found = self._detector.process_frame(self._timecode(self._num_seen, Fraction(25)), small)
        self._num_seen += 1
        return [cut.frame_num for cut in found]


def analysis_size(video: "VideoProbe") -> tuple[int, int]:
    """(height, width) of the small frames: as shown but not turned, the longer side at most ANALYSIS_WIDTH."""
    height, width = (video.width, video.height) if video.rotation in (90, 270) else (video.height, video.width)
    scale = min(1.0, ANALYSIS_WIDTH / max(height, width))
    return max(16, round(height * scale)), max(16, round(width * scale))


def find_cuts(path: str, config: ShotsConfig | None = None) -> list[int]:
    """First frame of each new shot of a file, counted from 0 in the order in which the decoder gives frames.

    Raises:
        VideoError: the file cannot be decoded.
    """
    from pyramid_model.footage import Footage  # needs PyAV, which readers of ShotsConfig do without

    detector = CutDetector(config or ShotsConfig())
    with Footage(path) as footage:
        height, width = analysis_size(footage.probe)
        return [cut for frame in footage.frames() for cut in detector.add(frame.small(height, width))]
