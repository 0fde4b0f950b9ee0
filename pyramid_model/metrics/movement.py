"""What moves from frame to frame, by dense optical flow, and how much of it is the camera.

Flow is measured between frames about 1/12 s apart, whatever the frame rate, on frames 128 px long: that is where slow
pans still move by a good part of a pixel, fast ones are still found, and a pair costs a quarter of a millisecond.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

RATE_HZ = 12
LONGER_SIDE = 128  # px
GRID = 8  # px between the points to which the camera's motion is fitted
MIN_POINTS = 8
TEXTURED = 200.0  # mean squared Sobel gradient: below it, flow is guessed from the neighbourhood
TOLERANCE = 1.0  # px by which a point that follows the camera may miss its place

MOVING = 0.015  # longer sides a second: a sixth of a pixel between two frames that are compared
STEADY = 0.6  # of the time a camera that moves on purpose moves the same way; one in a hand, half of it
SHAKY = 0.002  # longer sides: half a pixel of 256
LABELS = (
    ("pan right", "pan left"),
    ("tilt up", "tilt down"),
    ("zoom in", "zoom out"),
    ("roll clockwise", "roll counterclockwise"),
)
RADIUS = 0.3  # longer sides: about the mean distance of a pixel from the centre, where zoom and roll are felt
SMOOTHING_S = 1.0  # movements that take longer than this are meant


@dataclass(frozen=True)
class Movement:
    """Movement of the picture over n pairs of frames; lengths are shares of the frame's longer side."""

    interval_s: float  # between the two frames of a pair
    flow: np.ndarray  # (n,) mean length of the flow, 0 or more
    shift: np.ndarray  # (n 2) of the centre, x to the right and y down
    zoom: np.ndarray  # (n,) logarithm of the scale, above 0 when the picture grows
    roll: np.ndarray  # (n,) radians, above 0 when the picture turns clockwise
    fit: np.ndarray  # (n,) share of the textured points that move so, 0..1; 0 when too few are textured


def movement(frames: np.ndarray, fps: float) -> Movement:
    """Flow between frames about 1/12 s apart, and the shift, zoom and roll that explain most of each.

    frames: gray uint8 (t h w), at least 16 px either way. One frame gives no pairs.

    Source: dense inverse search, arXiv:1603.03590, by OpenCV; a similarity by RANSAC over points with texture.
    """
    stride = max(1, min(round(fps / RATE_HZ), len(frames) - 1))
    small = [_shrunk(frame) for frame in frames[::stride]]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # pyright: ignore
    dis.setFinestScale(1)  # the preset's own stops at a quarter of the size, which these frames have not to spare
    dis.setPatchStride(5)  # instead of 4: two thirds of the time, and as exact
    height, width = small[0].shape
    side = max(height, width)
    grid = np.mgrid[GRID // 2 : height : GRID, GRID // 2 : width : GRID]
    found = []
    for before, after in itertools.pairwise(small):
        flow = dis.calc(before, after, None)
        # Not by cv2.magnitude: its last bit depends on where in memory its result lies.
        length = np.sqrt(flow[..., 0] ** 2 + flow[..., 1] ** 2).mean(dtype=np.float64)
        shift_x, shift_y, *others = _global(before, flow, *grid)
        found.append((length / side, shift_x / side, shift_y / side, *others))
    table = np.array(found, np.float64).reshape(-1, 6)
    return Movement(stride / fps, table[:, 0], table[:, 1:3], table[:, 3], table[:, 4], table[:, 5])


def _shrunk(frame: np.ndarray) -> np.ndarray:
    scale = min(1.0, LONGER_SIDE / max(frame.shape))
    height, width = (max(16, round(size * scale)) for size in frame.shape)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _global(frame: np.ndarray, flow: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[float, ...]:
    """(shift x, shift y in px, zoom, roll, fit) of one pair, told at y, x; where nothing can be told nothing moves."""
    slope = cv2.Sobel(frame, cv2.CV_32F, 1, 0) ** 2 + cv2.Sobel(frame, cv2.CV_32F, 0, 1) ** 2
    textured = cv2.boxFilter(slope, -1, (GRID, GRID))[y, x] > TEXTURED
    if textured.sum() < MIN_POINTS:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    centre = np.array(frame.shape[::-1]) / 2
    start = (np.stack([x, y], -1)[textured] - centre).astype(np.float32)
    matrix, follows = cv2.estimateAffinePartial2D(
        start, start + flow[y, x][textured], ransacReprojThreshold=TOLERANCE, maxIters=200
    )
    if matrix is None:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    (cos, _, shift_x), (sin, _, shift_y) = matrix
    zoom = math.log(max(math.hypot(cos, sin), 1e-6))
    return shift_x, shift_y, zoom, math.atan2(sin, cos), float(follows.mean())


def flow_speed(found: Movement) -> float | None:
    """Mean length of the optical flow, longer sides of the frame a second; None when the clip has one frame.

    0 for a still; 0.01..0.1 for people who talk, about 0.5 for a fast pan. Neither frame rate nor size changes it.
    """
    return float(found.flow.mean() / found.interval_s) if len(found.flow) else None


def shake(found: Movement) -> float | None:
    """How far the picture strays from its own smooth path, as a share of the longer side; None below 3 pairs.

    Shift and roll count, smoothed over a second; half of the time it strays further, so that one car that passes by
    close to the camera does not count. 0 for a tripod and for a steady pan, above 0.002 for a hand.
    """
    if len(found.flow) < 3:
        return None
    steps = np.column_stack([found.shift, found.roll * RADIUS])
    path = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
    half = min(max(1, round(SMOOTHING_S / found.interval_s / 2)), (len(path) - 1) // 2)
    window = np.lib.stride_tricks.sliding_window_view(path, 2 * half + 1, axis=0)
    strays = path[half : len(path) - half] - window.mean(axis=-1)
    return float(np.median(np.linalg.norm(strays, axis=1)))


def camera_motion(found: Movement) -> tuple[float | None, dict[str, Any]]:
    """How the camera moves: (confidence 0..1, what it does); the confidence is None when the clip has one frame.

    The details hold the `label`: static, handheld, pan left, pan right, tilt up, tilt down, zoom in, zoom out, roll
    clockwise or roll counterclockwise, whichever moves the picture most; and the speed of each, the median over time:
    `pan` (to the right) and `tilt` (up) in longer sides a second, `zoom` (in) in log scale a second, `roll`
    (clockwise) in degrees a second.

    The confidence is the share of the textured picture that moves as one, times the share of the time in which it
    moves as the label says. Two dimensions cannot tell a pan from a sideways walk, nor a zoom from a walk ahead.
    """
    if not len(found.flow):
        return None, {"label": ""}
    # The camera goes where the picture does not: content that moves left is a pan to the right.
    speeds = np.column_stack([-found.shift[:, 0], found.shift[:, 1], found.zoom, -found.roll]) / found.interval_s
    felt = speeds * [1, 1, RADIUS, RADIUS]
    typical = np.median(felt, axis=0)
    kind = int(np.abs(typical).argmax())
    moves = np.abs(felt).max(axis=1) > 2 * MOVING
    same_way = felt[:, kind] * np.sign(typical[kind]) > abs(typical[kind]) / 2
    if abs(typical[kind]) > MOVING and same_way.mean() > STEADY:
        label, agrees = LABELS[kind][int(typical[kind] < 0)], same_way
    elif (shake(found) or 0.0) > SHAKY:
        label, agrees = "handheld", moves
    else:
        label, agrees = "static", ~moves
    pan, tilt, zoom, roll = (round(float(speed), 4) for speed in np.median(speeds, axis=0))
    details = {"label": label, "pan": pan, "tilt": tilt, "zoom": zoom, "roll": round(math.degrees(roll), 2)}
    return float(agrees.mean() * found.fit.mean()), details
