"""Frames in which two shots are blended: dissolves, and fades through an empty picture.

A frame of a dissolve is a mixture of the frames on either side of it: F = (1 - a) A + a B. Where the best mixture
leaves next to nothing of F unexplained while A and B have no structure in common, that is no coincidence: neither
motion nor a change of light makes mixtures of unlike pictures. In a fade the contrast falls frame by frame until
nothing is left.
"""

from collections import deque

import cv2
import numpy as np

SPANS = (4, 8, 16)  # frames on either side of the middle of a dissolve that are compared with it
LAGS = sorted({0, *SPANS, *(2 * span for span in SPANS)})
THUMBNAIL = (32, 18)  # px: small enough that slow motion within the blended shots does not matter
MAX_UNEXPLAINED = 0.15  # of the difference between A and B
MAX_CORRELATION = 0.5  # of the structure of A with that of B
MIN_DIFFERENCE = 8.0  # levels of 255 between A and B
MIN_SPREAD = 0.25  # median of the difference, in its root mean square; 0.67 where it is the same everywhere
MIN_CONTRAST = 2.5  # standard deviation of luma below which a frame is empty
MIN_FADE = 1.01  # factor of the contrast from frame to frame in a fade; one of 4 s at 24 a second has it on average
CLEAN = 0.05  # share of the other shot that is not seen


class GradualDetector:
    """Marks blended frames of a stream."""

    delay = 2 * max(SPANS) + 1  # frames after which a frame is marked if it will be

    def __init__(self):
        self._thumbs: deque[np.ndarray] = deque(maxlen=2 * max(SPANS) + 1)
        self._products: deque[dict[int, float]] = deque(maxlen=2 * max(SPANS) + 1)
        self._contrasts: deque[float] = deque(maxlen=2 * max(SPANS) + 1)
        self._num_seen = 0
        self._blended: set[int] = set()
        self._starts: dict[int, float] = {}  # where shots take over, with the difference between them
        self._is_rising = self._had_picture = False

    def add(self, small: np.ndarray) -> None:
        """Look at the next frame, BGR uint8 (h w c)."""
        luma = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        thumb = cv2.resize(luma, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        self._thumbs.append(thumb - 128)  # smaller numbers, smaller errors of rounding
        self._products.append(self._products_of_newest())
        self._contrasts.append(contrast(luma))
        self._num_seen += 1
        self._look_for_fade()
        for span in SPANS:
            if len(self._thumbs) > 2 * span:
                self._look_for_dissolve(span)

    def is_blended(self, index: int) -> bool:
        """Whether a frame is part of a dissolve or fade, or empty."""
        return index in self._blended

    def starts_shot(self, index: int) -> bool:
        """Whether a new shot takes over at a frame: half way through a dissolve, at the first frame after emptiness."""
        return index in self._starts

    def forget(self, index: int) -> None:
        """A frame will not be asked for again."""
        self._blended.discard(index)
        self._starts.pop(index, None)

    def _products_of_newest(self) -> dict[int, float]:
        """Mean products of the newest thumbnail with those so many frames before it."""
        newest, num_seen = self._thumbs[-1], len(self._thumbs)
        return {lag: mean_product(newest, self._thumbs[-1 - lag]) for lag in LAGS if lag < num_seen}

    def _product(self, age: int, older: int) -> float:
        """Mean product of two thumbnails that are so many frames old; `older` is the age of the earlier one."""
        return self._products[-1 - age][older - age]

    def _look_for_dissolve(self, span: int) -> None:
        # Nearly every frame is looked at in vain, so what is cheap to tell comes first: differences between thumbnails
        # by the products of these, which are shared by all spans.
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
            return  # titles change the picture only where they are written
        if structure_correlation(before, after) > MAX_CORRELATION:
            return
        shares = [mean_product(thumb - before, difference) / energy for thumb in list(self._thumbs)[first:]]
        start = self._num_seen - len(shares)
        self._blended.update(start + at for at, share in enumerate(shares) if CLEAN < share < 1 - CLEAN)
        # Frames further apart show more of the two shots, so they tell better where the middle is.
        others = [at for at in self._starts if at >= start]
        if energy > max((self._starts[at] for at in others), default=0.0):
            for at in others:
                del self._starts[at]
            self._starts[start + next(at for at, share in enumerate(shares) if share >= 0.5)] = energy

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
        for at in [at for at in self._starts if at >= first]:
            del self._starts[at]
        self._starts[index] = np.inf

    def _mark_fade_out(self) -> None:
        """The newest frame is the first empty one: mark those in which the contrast fell."""
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


def mean_product(one: np.ndarray, other: np.ndarray) -> float:
    """Mean of the products of two pictures, pixel by pixel; float32 (h w)."""
    return float(one.ravel() @ other.ravel()) / one.size


def is_local(difference: np.ndarray) -> bool:
    """Whether two pictures differ in less than half of their area; their difference, float (h w)."""
    changes = np.abs(difference)
    return float(np.median(changes)) < MIN_SPREAD * float(np.sqrt((changes * changes).mean()))


def structure_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of what stands out from its surroundings, -1..1: light that falls differently hardly changes it.

    Both are luma, float (h w).
    """
    first, second = (_structure(picture) for picture in (one, other))
    scale = float(np.sqrt((first * first).mean() * (second * second).mean()))
    return float((first * second).mean()) / scale if scale else 0.0


def _structure(picture: np.ndarray) -> np.ndarray:
    around = cv2.blur(picture, (7, 7))
    deviation = np.sqrt(np.maximum(cv2.blur(picture * picture, (7, 7)) - around * around, 0))
    return (picture - around) / (deviation + 2)
