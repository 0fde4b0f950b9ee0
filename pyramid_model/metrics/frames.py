"""Scores of a clip's frames: pure functions of uint8 arrays, cheap enough for the CPU that decodes."""

from collections.abc import Iterator

import numpy as np

BT601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def luma(frames: np.ndarray) -> np.ndarray:
    """Brightness of each pixel, float32 0..255, (t h w). frames: uint8, (t h w) as they are or RGB (t h w 3)."""
    return frames.astype(np.float32) if frames.ndim == 3 else frames @ BT601


def motion(frames: np.ndarray) -> float:
    """Mean absolute change of luma between neighbouring frames, 0..255; 0 for a single frame.

    frames: uint8, (t h w) or RGB (t h w 3). A still image gives 0, a cut several tens.
    """
    if len(frames) < 2:
        return 0.0
    # Frame by frame: a float copy of a long clip would not fit.
    changes = [np.abs(after - before).mean() for before, after in _neighbours(frames)]
    return float(np.mean(changes))


def _neighbours(frames: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    before = luma(frames[:1])[0]
    for index in range(1, len(frames)):
        after = luma(frames[index : index + 1])[0]
        yield before, after
        before = after


def sharpness(frames: np.ndarray) -> float:
    """Variance of the Laplacian of luma, mean over frames; below about 50 a 256 px wide frame looks blurred.

    frames: uint8, (t h w) or RGB (t h w 3), at least 3x3 px. Compare only frames of one size: scaling changes it.
    """
    return float(np.mean([_laplacian(luma(frame[None])[0]).var() for frame in frames]))


def _laplacian(plane: np.ndarray) -> np.ndarray:
    """Sum of the four neighbours minus four times the pixel; (h w) -> (h-2 w-2)."""
    inner = plane[1:-1, 1:-1]
    return plane[:-2, 1:-1] + plane[2:, 1:-1] + plane[1:-1, :-2] + plane[1:-1, 2:] - 4 * inner


def brightness(frames: np.ndarray) -> float:
    """Mean luma, 0 (black) to 255 (white). frames: uint8, (t h w) or RGB (t h w 3)."""
    return float(np.mean([luma(frame[None]).mean() for frame in frames]))
