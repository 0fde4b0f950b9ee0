"""Similarity of two videos (PSNR, SSIM), and change within one video. Frames are uint8 (t h w 3)."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np

SSIM_SIGMA, SSIM_WINDOW = 1.5, 11
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all frames together; infinite for equal videos.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(a, b)
    mean_square = float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean(dtype=np.float64))
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity, -1..1, mean over frames, channels and pixels; 1 for equal videos.

    Gaussian windows of 11 x 11 px, sigma 1.5, biased covariances; windows that extend beyond the frame do not count.

    Raises:
        ValueError: the shapes differ, or the frames are smaller than a window.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004, section III-B.
    """
    _check_same_shape(a, b)
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"frames of {a.shape[1]}x{a.shape[2]} px: SSIM needs at least {SSIM_WINDOW} px a side")
    return float(np.mean([_frame_ssim(x, y) for x, y in zip(a, b, strict=True)]))


def _frame_ssim(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return float((luminance * structure).mean())


def _windowed(frame: np.ndarray) -> np.ndarray:
    """Weighted mean around each pixel whose window lies inside the frame: (h w 3) -> (h-10 w-10 3)."""
    edge = SSIM_WINDOW // 2
    return cv2.GaussianBlur(frame, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA)[edge:-edge, edge:-edge]


def temporal_flicker(frames: np.ndarray) -> float:
    """Mean absolute change between neighbouring frames, 0..255; 0 for a still or a single frame.

    VBench's temporal flickering is (255 - this) / 255, arXiv:2311.17982. Motion increases it too, so compare it with
    `motion_magnitude`.
    """
    if len(frames) < 2:
        return 0.0
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def motion_magnitude(frames: np.ndarray) -> float:
    """Mean length of the optical flow between neighbouring frames in px per frame (Farneback); 0 for one frame."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if len(grey) < 2:
        return 0.0
    lengths = [float(np.linalg.norm(_flow(a, b), axis=-1).mean()) for a, b in itertools.pairwise(grey)]
    return float(np.mean(lengths))


def _flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dense optical flow from one grey frame to the next, (h w 2) px."""
    return cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # pyright: ignore


def _check_same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"videos of shapes {a.shape} and {b.shape} cannot be compared: crop or resize one of them")
