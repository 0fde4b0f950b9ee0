"""Detection of frames in which two shots are blended: dissolves, and fades through an empty picture.

A frame F of a dissolve is a mixture of a frame before and a frame after it: F = (1 - a) A + a B. A dissolve is detected
if the best mixture explains F almost completely while A and B have no structure in common. Motion and changes of light
do not produce such mixtures. In a fade, the contrast falls from frame to frame until the picture is empty.
"""

from collections import deque

import cv2
import numpy as np

SPANS = (4, 8, 16)  # distances in frames from the middle of a dissolve to the frames that it is compared with
LAGS = sorted({0, *SPANS, *(2 * span for span in SPANS)})
THUMBNAIL = (32, 18)  # px: so small that slow motion within the blended shots has no effect
MAX_UNEXPLAINED = 0.15  # largest residual of the mixture, as a share of the difference between A and B
MAX_CORRELATION = 0.5  # largest correlation of the structures of A and B
MIN_DIFFERENCE = 8.0  # smallest root mean square difference between A and B, levels of 255
MIN_SPREAD = 0.25  # smallest ratio of median to root mean square of the difference; 0.67 for Gaussian differences
MIN_CONTRAST = 2.5  # standard deviation of luma below which a frame is empty
MIN_FADE = 1.01  # least ratio of contrasts of neighbouring frames in a fade; the mean ratio in one of 4 s at 24 fps
CLEAN = 0.05  # share of the other shot below which a frame is not blended


class GradualDetector:
    """Marks blended frames of a stream of frames."""

    delay = 2 * max(SPANS) + 1  # number of later frames after which the mark of a frame is final

    def __init__(self):
        self._thumbs: deque[np.ndarray] = deque(maxlen=2 * max(SPANS) + 1)
        self._products: deque[dict[int, float]] = deque(maxlen=2 * max(SPANS) + 1)
        self._contrasts: deque[float] = deque(maxlen=2 * max(SPANS) + 1)
        self._num_seen = 0
        self._blended: set[int] = set()
        self._starts: dict[int, float] = {}  # first frame of a new shot: mean squared difference to the old shot
        self._is_rising = self._had_picture = False

    def add(self, small: np.ndarray) -> None:
        """Process the next frame, BGR uint8 (h w c)."""
        luma = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        thumb = cv2.resize(luma, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        self._thumbs.append(thumb - 128)  # centred, to reduce rounding errors
        self._products.append(self._products_of_newest())
        self._contrasts.append(contrast(luma))
        self._num_seen += 1
        self._look_for_fade()
        for span in SPANS:
            if len(self._thumbs) > 2 * span:
                self._look_for_dissolve(span)

    def is_blended(self, index: int) -> bool:
        """Whether a frame is empty, or part of a dissolve or fade."""
        return index in self._blended

    def starts_shot(self, index: int) -> bool:
        """Whether a new shot starts at a frame: in the middle of a dissolve, or at the first frame after empty ones."""
        return index in self._starts

    def forget(self, index: int) -> None:
        """Drop the results of a frame that is not needed any more."""
        self._blended.discard(index)
        self._starts.pop(index, None)

    def _products_of_newest(self) -> dict[int, float]:
        """Mean products of the newest thumbnail with earlier ones, by distance in frames."""
        newest, num_thumbs = self._thumbs[-1], len(self._thumbs)
        return {lag: mean_product(newest, self._thumbs[-1 - lag]) for lag in LAGS if lag < num_thumbs}

    def _product(self, age: int, older: int) -> float:
        """Mean product of two thumbnails by their ages in frames; `older` is the age of the earlier one."""
        return self._products[-1 - age][older - age]

    def _look_for_dissolve(self, span: int) -> None:
        # Almost no frame is in a dissolve, so the cheapest tests come first: differences between thumbnails computed
        # from their mean products, which all spans share.
        product = self._product
        before_before, middle_before = product(2 * span, 2 * span), product(span, 2 * span)
        after_before = product(0, 2 * span)
        energy = product(0, 0) - 2 * after_before + before_before  # of after - before
        if energy < MIN_DIFFERENCE**2:
            return
        share = (product(0, span) - middle_before - after_before + before_before) / energy
        half_way_energy = product(span, span) - 2 * middle_before + before_before  # of middle - before
        if not 0.25 < share < 0.75 or half_way_energy - share**2 * energy > MAX_UNEXPLAINED**2 * energy:
            return
        first = len(self._thumbs) - 1 - 2 * span
        before, after = self._thumbs[first], self._thumbs[-1]
        difference = after - before
        if min(list(self._contrasts)[first:]) < MIN_CONTRAST:
            return  # a fade, or a cut to an empty picture
        if is_local(difference):
            return  # a title, which changes only a part of the picture
        if structure_correlation(before, after) > MAX_CORRELATION:
            return
        shares = [mean_product(thumb - before, difference) / energy for thumb in list(self._thumbs)[first:]]
        start = self._num_seen - len(shares)
        self._blended.update(start + i for i, share in enumerate(shares) if CLEAN < share < 1 - CLEAN)
        # The larger the difference, the less blended are the two frames, and the more exact is the middle.
        overlapping = [index for index in self._starts if index >= start]
        if energy > max((self._starts[index] for index in overlapping), default=0.0):
            for index in overlapping:
                del self._starts[index]
            self._starts[start + next(i for i, share in enumerate(shares) if share >= 0.5)] = energy

    def _look_for_fade(self) -> None:
        index, contrasts = self._num_seen - 1, self._contrasts
        if contrasts[-1] < MIN_CONTRAST:
            self._blended.add(index)
            if len(contrasts) > 1 and contrasts[-2] >= MIN_CONTRAST:
                self._mark_fade_out()
            self._is_rising = True
            return
        if self._is_rising and contrasts[-2] < MIN_CONTRAST:
            if self._had_picture:
                self._start_after_fade(index)
        elif self._is_rising and contrasts[-1] >= MIN_FADE * contrasts[-2]:
            self._blended.add(index - 1)
        else:
            self._is_rising = False
        self._had_picture = True

    def _start_after_fade(self, index: int) -> None:
        first = index
        while first - 1 in self._blended:
            first -= 1
        for start in [start for start in self._starts if start >= first]:
            del self._starts[start]
        self._starts[index] = np.inf

    def _mark_fade_out(self) -> None:
        """Mark the frames in which the contrast fell; called when the newest frame is the first empty one."""
        contrasts = list(self._contrasts)
        index = self._num_seen - 2
        for later, earlier in zip(contrasts[-2:0:-1], contrasts[-3::-1], strict=False):
            if earlier < MIN_FADE * later:
                break
            self._blended.add(index)
            index -= 1


def contrast(luma: np.ndarray) -> float:
    """Standard deviation of luma, uint8 (h w)."""
    return cv2.meanStdDev(luma)[1].item()


def mean_product(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over the pixels of the product of two pictures, float32 (h w)."""
    return float(first.ravel() @ second.ravel()) / first.size


def is_local(difference: np.ndarray) -> bool:
    """Whether two pictures differ in less than half of their area. difference: float (h w)."""
    changes = np.abs(difference)
    return float(np.median(changes)) < MIN_SPREAD * float(np.sqrt((changes * changes).mean()))


def structure_correlation(first_luma: np.ndarray, second_luma: np.ndarray) -> float:
    """Correlation of two pictures after local normalisation, -1..1; changes of light have little effect on it.

    first_luma, second_luma: of the pictures, float (h w).
    """
    first, second = (_structure(picture) for picture in (first_luma, second_luma))
    scale = float(np.sqrt((first * first).mean() * (second * second).mean()))
    return float((first * second).mean()) / scale if scale else 0.0


def _structure(picture: np.ndarray) -> np.ndarray:
    """Difference from the local mean, divided by the local standard deviation."""
    mean = cv2.blur(picture, (7, 7))
    deviation = np.sqrt(np.maximum(cv2.blur(picture * picture, (7, 7)) - mean * mean, 0))
    return (picture - mean) / (deviation + 2)
