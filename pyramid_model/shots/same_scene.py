"""Whether two frames show the same scene: what a proposed cut must stand up to.

A cut cannot be explained by motion, nor by a change of light. So the earlier frame is moved along the optical flow onto
the later one, and the two are correlated, which neither brightness nor contrast affects.
"""

import functools
from collections import deque

import cv2
import numpy as np

from pyramid_model.shots.gradual import MIN_CONTRAST, contrast

FLASH_FRAMES = 6  # that a flash may last
SAME = 0.8  # correlation above which motion and light explain a change
UNRELATED = 0.4  # correlation below which they certainly do not: the fastest motion from frame to frame leaves 0.7
MIN_CHANGE = 15.0  # levels of 255, as PySceneDetect's `min_content_val`; enough for a cut whatever the contrast
# Darker scenes change by less. Two unrelated frames differ by about as much as each varies within itself; a line of
# text that appears on black differs by about half of that.
MIN_CHANGE_OF_CONTRAST = 0.7
BLACK = 24  # luma: bars of a letterbox and their noise


def motion_correlation(before: np.ndarray, after: np.ndarray) -> float:
    """Correlation of `after` with `before` moved onto it, -1..1; both luma, uint8 (h w).

    0 where a frame is empty: it resembles nothing.
    """
    if min(contrast(before), contrast(after)) < MIN_CONTRAST:
        return 0.0
    flow = _flow().calc(after, before, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
    x, y = _grid(*after.shape)
    moved = cv2.remap(before, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return _correlation(moved, after)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of the pixels that are black in neither picture: bars of a letterbox are alike in all."""
    shown = np.maximum(one, other) >= BLACK
    if shown.mean() < 0.05:
        shown = np.ones_like(shown)
    first, second = one[shown].astype(np.float32), other[shown].astype(np.float32)
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first * first).sum() * (second * second).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


@functools.cache
def _flow() -> cv2.DISOpticalFlow:
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)


@functools.lru_cache(4)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x, y


def is_lit_or_darkened(scene: np.ndarray, other: np.ndarray) -> bool:
    """Whether `other` may be `scene` with light added, or with light taken away; both luma, uint8 (h w).

    Light changes all pixels in one direction; another picture is brighter here and darker there.
    """
    change = other.astype(np.int16) - scene
    return abs(float(change.mean())) > 10 and min((change > 8).mean(), (change < -8).mean()) < 0.05


class RecentFrames:
    """The newest frames, to look at a proposed cut again when those after it are known."""

    def __init__(self, num_kept: int):
        self._frames: deque[np.ndarray] = deque()
        self._luma: dict[int, np.ndarray] = {}
        self._num_seen = 0
        self._num_kept = num_kept

    def add(self, small: np.ndarray) -> None:
        """The next frame, BGR uint8 (h w c)."""
        self._frames.append(small)
        self._num_seen += 1
        if len(self._frames) > self._num_kept:
            self._frames.popleft()
            self._luma.pop(self._num_seen - self._num_kept - 1, None)

    def _frame(self, index: int) -> np.ndarray | None:
        position = index - self._num_seen + len(self._frames)
        return self._frames[position] if 0 <= position < len(self._frames) else None

    def luma(self, index: int) -> np.ndarray | None:
        """Luma of a frame, None where it is not there (any more)."""
        frame = self._frame(index)
        if frame is not None and index not in self._luma:
            self._luma[index] = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        return self._luma.get(index) if frame is not None else None

    def is_cut(self, index: int, goes_on: bool, stands_out: bool) -> bool:
        """Whether a new scene starts at `index`.

        Args:
            index: a frame that is still kept, and the one before it.
            goes_on: the change goes on in the next frame.
            stands_out: the change stands out from those around it; where it does not, the frames must be unrelated.
        """
        if not self._is_large(index):
            return False
        is_other = self.correlation(index - 1, index) < (SAME if stands_out else UNRELATED)
        if not is_other and goes_on and stands_out:
            # Half of the old and half of the new picture resembles both: then the frame after it tells.
            is_other = self.luma(index + 1) is not None and not self.is_same(index - 1, index + 1)
        return is_other and not self.is_flash(index)

    def correlation(self, first: int, second: int) -> float:
        """`motion_correlation` of two frames; 0 where one of them is not there (any more)."""
        one, other = self.luma(first), self.luma(second)
        return 0.0 if one is None or other is None else motion_correlation(one, other)

    def is_same(self, first: int, second: int) -> bool:
        """Whether two frames show the same scene."""
        return self.correlation(first, second) >= SAME

    def _is_large(self, index: int) -> bool:
        before, after = self._frame(index - 1), self._frame(index)
        if before is None or after is None:
            return False
        change = colour_change(before, after)
        if change >= MIN_CHANGE:
            return True
        contrasts = [contrast(self.luma(at)) for at in (index - 1, index)]  # pyright: ignore[reportArgumentType]
        return min(contrasts) >= MIN_CONTRAST and change >= MIN_CHANGE_OF_CONTRAST * sum(contrasts) / 2

    def is_flash(self, index: int) -> bool:
        """Whether the scene before is back soon, or was there shortly before, lit or darkened meanwhile."""
        return self._is_lit_between(index - 1, 1) or self._is_lit_between(index, -1)

    def _is_lit_between(self, start: int, direction: int) -> bool:
        """Whether the frames next to `start` are its scene in another light, and then it is back."""
        scene = self.luma(start)
        for num_frames in range(1, FLASH_FRAMES + 1):
            lit, back = self.luma(start + direction * num_frames), self.luma(start + direction * (num_frames + 1))
            if scene is None or lit is None or back is None or not is_lit_or_darkened(scene, lit):
                return False
            if not is_lit_or_darkened(scene, back) and motion_correlation(scene, back) >= SAME:
                return True
        return False


def colour_change(before: np.ndarray, after: np.ndarray) -> float:
    """Mean over the pixels of the change of the most changed channel, 0..255; both BGR uint8 (h w c)."""
    import cv2

    blue, green, red = cv2.split(cv2.absdiff(before, after))
    return cv2.mean(cv2.max(cv2.max(blue, green), red))[0]
