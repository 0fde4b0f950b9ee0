"""Detection of black bars around the picture: letterbox, pillarbox, or both."""

from typing import NamedTuple

import numpy as np

DARK = 24  # largest difference in luma between a pixel of a bar and the bar's level: ringing, grain
BLACKEST = 48  # bars have a luma below this
QUIET = 0.15  # largest share of bright pixels in the lines of a bar next to the picture
STEP = 3  # lines over which the edge of the picture may be blurred by scaling and compression
LIT = 0.5  # smallest share of bright pixels in the first lines of the picture
FILLED = 0.7  # smallest share of the picture that is bright at some time; with less, it is a title on black
SIXTHS = 6
NARROW = 0.04  # share of the side; a bar wider than this needs a bar on the opposite side


class Box(NamedTuple):
    """The picture without its bars, in pixels: first column and row, first column and row after it."""

    left: int
    top: int
    right: int
    bottom: int


def picture_box(frames: np.ndarray) -> Box | None:
    """Box of the picture within black bars; None if there are no bars.

    A bar is black in all frames, extends along a whole side and ends in a straight edge, beyond which most of a line is
    bright. Dark scenes, fades and vignettes have soft or uneven edges and are not detected. A wide bar needs a bar on
    the opposite side that is at least half as wide; this excludes a night sky above a straight horizon. A logo or
    subtitles may lie in a bar if a sixth of each line stays black. Not detected: a picture that fills less than half of
    the height and of the width, and bars around a picture that is never bright.

    Args:
        frames: gray uint8 (t h w). Different scenes make the result more reliable.
    """
    brightest = frames.max(axis=0)
    height, width = brightest.shape
    above = brightest - _bar_level(brightest)
    box = Box(0, 0, width, height)
    for _ in range(2):  # horizontal bars are detected only within vertical ones, and the other way round
        left, right = _ends(above[box.top : box.bottom].T)
        box = Box(left, box.top, right, box.bottom)
        top, bottom = _ends(above[:, box.left : box.right])
        box = Box(box.left, top, box.right, bottom)
    is_picture = (above[box.top : box.bottom, box.left : box.right] > DARK).mean() >= FILLED
    return box if is_picture and box != (0, 0, width, height) else None


def border_share(box: Box | None, height: int, width: int) -> float:
    """Share of a frame of height x width px that lies outside the box, 0..1; 0 without one."""
    if box is None:
        return 0.0
    return 1 - (box.right - box.left) * (box.bottom - box.top) / (height * width)


def _bar_level(brightest: np.ndarray) -> float:
    """Luma of the darkest side of the frame, which is the level of its bars if it has any."""
    sides = (brightest[0], brightest[-1], brightest[:, 0], brightest[:, -1])
    return min(BLACKEST - DARK, min(float(np.median(side)) for side in sides))


def _ends(above: np.ndarray) -> tuple[int, int]:
    """(first line of the picture, first line after it) along axis 0. above: luma minus that of the bars, (lines px)."""
    widths = _bar(above), _bar(above[::-1])
    before, after = (
        width if width <= max(2 * other, NARROW * len(above)) else 0
        for width, other in zip(widths, reversed(widths), strict=True)
    )
    return before, len(above) - after


def _bar(above: np.ndarray) -> int:
    """Width in lines of a bar that starts at the first line; 0 if no straight edge ends it."""
    lit = above > DARK
    shares, levels = lit.mean(axis=1), above.mean(axis=1)
    parts = np.stack([part.any(axis=1) for part in np.array_split(lit, SIXTHS, axis=1)])
    is_bar = np.logical_not(parts.all(axis=0))  # a line with a logo or subtitles has at least one black sixth
    for line in range(1, len(lit) // 2):
        if not is_bar[line - 1]:
            return 0
        before, after = slice(max(0, line - STEP), line), slice(line, line + STEP)
        starts = shares[before].max() <= QUIET < shares[line] and shares[after].max() >= LIT
        if starts and levels[after].mean() - levels[before].mean() > DARK:
            return line + int(np.argmax(shares[after] >= LIT))
    return 0
