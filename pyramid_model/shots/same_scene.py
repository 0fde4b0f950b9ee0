"""Confirmation of proposed cuts: whether two frames show the same scene.

A cut cannot be explained by motion or by a change of light. Therefore the earlier frame is warped onto the later one
along the optical flow, and the two are correlated. The correlation does not depend on brightness or contrast.
"""

import functools
from collections import deque

import cv2
import numpy as np

from pyramid_model.shots.gradual import MIN_CONTRAST, contrast

FLASH_FRAMES = 6  # longest flash
SAME = 0.8  # correlation above which motion or light explains a change
UNRELATED = 0.4  # correlation below which they cannot explain a change; the fastest motion still gives 0.7
MIN_CHANGE = 15.0  # levels of 255, as PySceneDetect's `min_content_val`; enough for a cut at any contrast
# Dark scenes change by less. The difference of two unrelated frames is about as large as the contrast of each. The
# difference made by a line of text that appears on black is about half of that.
MIN_CHANGE_OF_CONTRAST = 0.7  # smallest ratio of the change to the contrast
BLACK = 24  # luma below which a pixel may belong to a black bar


def motion_correlation(before: np.ndarray, after: np.ndarray) -> float:
    """Correlation of `after` with `before` warped along the optical flow, -1..1; both luma, uint8 (h w).

    0 if a frame is empty.
    """
    if min(contrast(before), contrast(after)) < MIN_CONTRAST:
        return 0.0
    flow = _flow().calc(after, before, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
    x, y = _grid(*after.shape)
    moved = cv2.remap(before, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return _correlation(moved, after)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation over the pixels that are not black in both pictures, which excludes black bars."""
    is_used = np.maximum(first, second) >= BLACK
    if is_used.mean() < 0.05:
        is_used = np.ones_like(is_used)
    first, second = first[is_used].astype(np.float32), second[is_used].astype(np.float32)
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
    """Whether `other` can be `scene` with more light or with less light; both luma, uint8 (h w).

    Light changes all pixels in one direction. Another picture is brighter in some pixels and darker in others.
    """
    change = other.astype(np.int16) - scene
    return abs(float(change.mean())) > 10 and min((change > 8).mean(), (change < -8).mean()) < 0.05


class RecentFrames:
    """The newest frames of a stream, for tests of a proposed cut that need later frames.

    capacity: number of frames that are stored.
    """

    def __init__(self, capacity: int):
        self._frames: deque[np.ndarray] = deque()
        self._luma: dict[int, np.ndarray] = {}
        self._num_seen = 0
        self._capacity = capacity

    def add(self, small: np.ndarray) -> None:
        """Store the next frame, BGR uint8 (h w c)."""
        self._frames.append(small)
        self._num_seen += 1
        if len(self._frames) > self._capacity:
            self._frames.popleft()
            self._luma.pop(self._num_seen - self._capacity - 1, None)

    def _frame(self, index: int) -> np.ndarray | None:
        position = index - self._num_seen + len(self._frames)
        return self._frames[position] if 0 <= position < len(self._frames) else None

    def luma(self, index: int) -> np.ndarray | None:
        """Luma of a frame, uint8 (h w); None if the frame is not stored."""
        frame = self._frame(index)
        if frame is not None and index not in self._luma:
            self._luma[index] = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        return self._luma.get(index) if frame is not None else None

    def is_cut(self, index: int, goes_on: bool, stands_out: bool) -> bool:
        """Whether a new scene starts at `index`.

        Args:
            index: a stored frame; the previous frame must be stored too.
            goes_on: a cut is also proposed at the next frame.
            stands_out: the change is large compared with the changes around it. If it is not, only unrelated frames
                make a cut.
        """
        if not self._is_large(index):
            return False
        is_other = self.correlation(index - 1, index) < (SAME if stands_out else UNRELATED)
        if not is_other and goes_on and stands_out:
            # A frame that is half old and half new scene resembles both: compare with the next frame instead.
            is_other = self.luma(index + 1) is not None and not self.is_same(index - 1, index + 1)
        return is_other and not self.is_flash(index)

    def correlation(self, first: int, second: int) -> float:
        """`motion_correlation` of two frames; 0 if one of them is not stored."""
        first_luma, second_luma = self.luma(first), self.luma(second)
        return 0.0 if first_luma is None or second_luma is None else motion_correlation(first_luma, second_luma)

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
        contrasts = [contrast(self.luma(i)) for i in (index - 1, index)]  # pyright: ignore[reportArgumentType]
        return min(contrasts) >= MIN_CONTRAST and change >= MIN_CHANGE_OF_CONTRAST * sum(contrasts) / 2

    def is_flash(self, index: int) -> bool:
        """Whether `index` is the first frame of a flash, or the first frame after one."""
        return self._is_lit_between(index - 1, 1) or self._is_lit_between(index, -1)

    def _is_lit_between(self, start: int, direction: int) -> bool:
        """Whether a flash lies next to `start` in a direction: frames in other light, then the scene of `start`."""
        scene = self.luma(start)
        for num_frames in range(1, FLASH_FRAMES + 1):
            flash, end = self.luma(start + direction * num_frames), self.luma(start + direction * (num_frames + 1))
            if scene is None or flash is None or end is None or not is_lit_or_darkened(scene, flash):
                return False
            if not is_lit_or_darkened(scene, end) and motion_correlation(scene, end) >= SAME:
                return True
        return False


def colour_change(before: np.ndarray, after: np.ndarray) -> float:
    """Mean over the pixels of the largest change among the channels, 0..255; both BGR uint8 (h w c)."""
    import cv2

    blue, green, red = cv2.split(cv2.absdiff(before, after))
    return cv2.mean(cv2.max(cv2.max(blue, green), red))[0]
