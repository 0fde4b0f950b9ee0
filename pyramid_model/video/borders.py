"""Black bars around the picture: letterbox, pillarbox, or both."""

from typing import NamedTuple

import numpy as np

DARK = 24  # luma over that of a bar, up to which a pixel may still belong to one: ringing, grain
BLACKEST = 48  # bars are darker than this
QUIET = 0.15  # most of a line of a bar that may be lit, beside the picture
STEP = 3  # lines over which the picture may begin: scaling and compression blur its edge
LIT = 0.5  # least of the picture's first lines that must be lit
FILLED = 0.7  # least of the picture that must be lit at some time: else it is a title, not a picture
SIXTHS = 6
NARROW = 0.04  # of the side: a wider bar than this has another one opposite


class Box(NamedTuple):
    """The picture without its bars, in pixels: first column and row, first column and row after it."""

    left: int
    top: int
    right: int
    bottom: int


def picture_box(frames: np.ndarray) -> Box | None:
    """Where the picture lies within black bars; None where there are none.

    Args:
        frames: gray uint8 (t h w). The more differ, the surer: only what is black in all of them is a bar.

    A bar is black all the time, runs along a whole side and ends in a straight edge, beyond which the picture begins
    over most of the side's length. Dark scenes, fades and vignettes end softly or raggedly, so that they make no box.
    A wide bar counts only with another one opposite that is at least half as wide: a night sky above a straight
    horizon has none. A logo or subtitles may stand in a bar, as long as a sixth of each line stays black. A picture
    that fills less than half of the frame both ways is not found, and a frame that is never lit has no box.
    """
    brightest = frames.max(axis=0)
    height, width = brightest.shape
    above = brightest - _bar_level(brightest)
    box = Box(0, 0, width, height)
    for _ in range(2):  # bars on one side hide those on the other until they are taken off
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
    """Luma of the frame's darkest side: of its bars, if it has any."""
    sides = (brightest[0], brightest[-1], brightest[:, 0], brightest[:, -1])
    return min(BLACKEST - DARK, min(float(np.median(side)) for side in sides))


def _ends(above: np.ndarray) -> tuple[int, int]:
    """(first line of the picture, first line after it) along the first axis. above: luma over the bars, (lines px)."""
    widths = _bar(above), _bar(above[::-1])
    before, after = (
        width if width <= max(2 * other, NARROW * len(above)) else 0
        for width, other in zip(widths, reversed(widths), strict=True)
    )
    return before, len(above) - after


def _bar(above: np.ndarray) -> int:
    """Number of lines before the picture, from the first line on; 0 when no straight edge ends them."""
    lit = above > DARK
    shares, levels = lit.mean(axis=1), above.mean(axis=1)
    parts = np.stack([part.any(axis=1) for part in np.array_split(lit, SIXTHS, axis=1)])
    is_bar = np.logical_not(parts.all(axis=0))  # of a line with a logo or with subtitles, some sixth is black
    for line in range(1, len(lit) // 2):
        if not is_bar[line - 1]:
            return 0
        before, after = slice(max(0, line - STEP), line), slice(line, line + STEP)
        starts = shares[before].max() <= QUIET < shares[line] and shares[after].max() >= LIT
        if starts and levels[after].mean() - levels[before].mean() > DARK:
            return line + int(np.argmax(shares[after] >= LIT))
    return 0
