"""Scores of a clip's frames: pure functions of uint8 arrays, cheap enough to run on the CPU while decoding."""

import itertools
from collections.abc import Iterator

import cv2
import numpy as np

BT601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)
FROZEN = 0.255  # mean change of luma, 0..255, below which two frames count as equal
CRUSHED = 3  # distance in luma from black or white within which detail is lost
NEARLY_ALL = 0.98  # share of the pixels of a black or white frame


def luma(frames: np.ndarray) -> np.ndarray:
    """Luma of each pixel, 0..255, (t h w). frames: gray (t h w), returned unchanged; or RGB (t h w 3), as float32."""
    return frames if frames.ndim == 3 else frames @ BT601


def motion(frames: np.ndarray) -> float:
    """Mean absolute change of luma between neighbouring frames, 0..255; 0 for a single frame.

    frames: uint8, (t h w) or RGB (t h w 3). A still image gives 0, a cut several tens.
    """
    if len(frames) < 2:
        return 0.0
    return float(np.mean(list(_changes(frames))))


def _changes(frames: np.ndarray) -> Iterator[float]:
    """Yield the mean change of luma from each frame to the next, 0..255."""
    # Frame by frame, since a float copy of a long clip would not fit into memory.
    lumas = (luma(frames[index : index + 1])[0] for index in range(len(frames)))
    return (cv2.mean(cv2.absdiff(after, before))[0] for before, after in itertools.pairwise(lumas))


def sharpness(frames: np.ndarray) -> float:
    """Variance of the Laplacian of luma, mean over frames; below about 50 a 256 px wide frame looks blurred.

    frames: uint8, (t h w) or RGB (t h w 3), at least 3x3 px. Compare only frames of one size: scaling changes it.
    """
    # Without the outermost pixels, which have no neighbours beyond the frame.
    lumas = (luma(frame[None])[0].astype(np.float32) for frame in frames)  # OpenCV is faster with floats here
    edges = (cv2.Laplacian(frame, cv2.CV_32F)[1:-1, 1:-1] for frame in lumas)
    return float(np.mean([cv2.meanStdDev(edge)[1].item() ** 2 for edge in edges]))


def brightness(frames: np.ndarray) -> float:
    """Mean luma, 0 (black) to 255 (white). frames: uint8, (t h w) or RGB (t h w 3)."""
    return float(np.mean([cv2.mean(luma(frame[None])[0])[0] for frame in frames]))


def static_ratio(frames: np.ndarray) -> float:
    """Share of the frames after the first that (nearly) equal the previous frame, 0..1; 0 for a single frame.

    frames: gray uint8 (t h w). Equal means a mean change of luma below a thousandth of its range, as in FFmpeg's
    freezedetect: 1 for a slide or a freeze, about 0.5 for animation that is drawn on twos.
    """
    is_frozen = [change < FROZEN for change in _changes(frames)]
    return float(np.mean(is_frozen)) if is_frozen else 0.0


def exposure(frames: np.ndarray) -> tuple[float, float]:
    """(share of black pixels, share of white pixels), 0..1 each. frames: gray uint8 (t h w).

    Counts luma within 3 of either end of the range, where detail is lost. Black borders count too.
    """
    num_black, num_white = np.count_nonzero(frames <= CRUSHED), np.count_nonzero(frames >= 255 - CRUSHED)
    return num_black / frames.size, num_white / frames.size


def black_ratio(frames: np.ndarray) -> float:
    """Share of the frames that are nearly black, such as in fades, 0..1. frames: gray uint8 (t h w).

    Such a frame has 98 % of its pixels below a tenth of the range, as in FFmpeg's blackdetect.
    """
    return _share_of_frames(frames <= 25)


def white_ratio(frames: np.ndarray) -> float:
    """Share of the frames that are nearly white, such as in flashes, 0..1. frames: gray uint8 (t h w).

    Such a frame has 98 % of its pixels in the brightest tenth of the range.
    """
    return _share_of_frames(frames >= 230)


def _share_of_frames(pixels: np.ndarray) -> float:
    """Share of the frames in which nearly all pixels are True. pixels: bool (t h w)."""
    return float(np.mean(np.count_nonzero(pixels, axis=(1, 2)) >= NEARLY_ALL * pixels[0].size))
