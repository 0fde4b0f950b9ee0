"""Motion of the picture by dense optical flow, and the part of it that the camera causes.

Flow is computed between frames about 1/12 s apart at every frame rate, on frames scaled to 128 px. At this distance and
size, slow pans still move by a good part of a pixel, fast pans are still tracked, and a pair takes 0.25 ms.
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
TEXTURED = 200.0  # mean squared Sobel gradient; below it, flow is interpolated from the neighbourhood
TOLERANCE = 1.0  # px; largest error of a point that follows the camera

MOVING = 0.015  # longer sides per second: a sixth of a pixel between two frames that are compared
STEADY = 0.6  # smallest share of the time in which a deliberate motion has one direction; 0.5 for a handheld camera
SHAKY = 0.002  # longer sides: half a pixel of 256
LABELS = (
    ("pan right", "pan left"),
    ("tilt up", "tilt down"),
    ("zoom in", "zoom out"),
    ("roll clockwise", "roll counterclockwise"),
)
RADIUS = 0.3  # longer sides: about the mean distance of a pixel from the centre, converts zoom and roll to shifts
SMOOTHING_S = 1.0  # slower movements are deliberate


@dataclass(frozen=True)
class Movement:
    """Movement of the picture over n pairs of frames. Lengths are in longer sides of the frame."""

    interval_s: float  # between the two frames of a pair
    flow: np.ndarray  # (n,) mean length of the flow, 0 or more
    shift: np.ndarray  # (n 2) of the centre, x to the right and y down
    zoom: np.ndarray  # (n,) logarithm of the scale, positive if the picture grows
    roll: np.ndarray  # (n,) radians, positive if the picture turns clockwise
    fit: np.ndarray  # (n,) share of the textured points that follow shift, zoom and roll, 0..1; 0 if there are too few


def movement(frames: np.ndarray, fps: float) -> Movement:
    """Flow between frames about 1/12 s apart, and the shift, zoom and roll that fit it best.

    frames: gray uint8 (t h w), h and w at least 16 px; a single frame gives no pairs. fps: of the frames.

    Source: dense inverse search, arXiv:1603.03590, by OpenCV; a similarity by RANSAC over points with texture.
    """
    stride = max(1, min(round(fps / RATE_HZ), len(frames) - 1))
    small = [_shrunk(frame) for frame in frames[::stride]]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # pyright: ignore
    dis.setFinestScale(1)  # half of the size; the preset stops at a quarter, too coarse for frames of 128 px
    dis.setPatchStride(5)  # instead of 4: two thirds of the time at the same accuracy
    height, width = small[0].shape
    side = max(height, width)
    grid = np.mgrid[GRID // 2 : height : GRID, GRID // 2 : width : GRID]
    pairs = []
    for before, after in itertools.pairwise(small):
        flow = dis.calc(before, after, None)
        # Not with cv2.magnitude, whose last bit depends on the memory alignment of the result.
        length = np.sqrt(flow[..., 0] ** 2 + flow[..., 1] ** 2).mean(dtype=np.float64)
        shift_x, shift_y, *others = _camera_transform(before, flow, *grid)
        pairs.append((length / side, shift_x / side, shift_y / side, *others))
    table = np.array(pairs, np.float64).reshape(-1, 6)
    return Movement(stride / fps, table[:, 0], table[:, 1:3], table[:, 3], table[:, 4], table[:, 5])


def _shrunk(frame: np.ndarray) -> np.ndarray:
    scale = min(1.0, LONGER_SIDE / max(frame.shape))
    height, width = (max(16, round(size * scale)) for size in frame.shape)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _camera_transform(frame: np.ndarray, flow: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[float, ...]:
    """(shift x, shift y in px, zoom, roll, fit) of one pair, fitted to the flow at the points y, x.

    All 0 if too few points have texture.
    """
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


def flow_speed(movement: Movement) -> float | None:
    """Mean length of the optical flow in longer sides of the frame per second; None if the clip has one frame.

    0 for a still; 0.01..0.1 for people who talk, about 0.5 for a fast pan. Independent of frame rate and size.
    """
    return float(movement.flow.mean() / movement.interval_s) if len(movement.flow) else None


def shake(movement: Movement) -> float | None:
    """Median distance of the picture from its smoothed path, in longer sides of the frame; None below 3 pairs.

    The path consists of shift and roll, smoothed over a second. The median ignores short events, such as a car that
    passes close to the camera. 0 for a tripod and for a steady pan, more than 0.002 for a handheld camera.
    """
    if len(movement.flow) < 3:
        return None
    steps = np.column_stack([movement.shift, movement.roll * RADIUS])
    path = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
    half = min(max(1, round(SMOOTHING_S / movement.interval_s / 2)), (len(path) - 1) // 2)
    window = np.lib.stride_tricks.sliding_window_view(path, 2 * half + 1, axis=0)
    deviations = path[half : len(path) - half] - window.mean(axis=-1)
    return float(np.median(np.linalg.norm(deviations, axis=1)))


def camera_motion(movement: Movement) -> tuple[float | None, dict[str, Any]]:
    """Motion of the camera: (confidence 0..1, details); the confidence is None if the clip has one frame.

    Details: `label`, the motion that moves the picture most: static, handheld, pan left, pan right, tilt up, tilt down,
    zoom in, zoom out, roll clockwise or roll counterclockwise. And the median speeds: `pan` (to the right) and `tilt`
    (up) in longer sides per second, `zoom` (in) in log scale per second, `roll` (clockwise) in degrees per second.

    The confidence is the share of the textured picture that follows the camera, times the share of the time in which
    the motion agrees with the label. Flow cannot distinguish a pan from a sideways walk, or a zoom from a walk forward.
    """
    if not len(movement.flow):
        return None, {"label": ""}
    # The picture moves opposite to the camera: content that moves left is a pan to the right.
    speeds = np.column_stack([-movement.shift[:, 0], movement.shift[:, 1], movement.zoom, -movement.roll])
    speeds = speeds / movement.interval_s
    picture_speeds = speeds * [1, 1, RADIUS, RADIUS]
    typical = np.median(picture_speeds, axis=0)
    kind = int(np.abs(typical).argmax())
    is_moving = np.abs(picture_speeds).max(axis=1) > 2 * MOVING
    is_typical = picture_speeds[:, kind] * np.sign(typical[kind]) > abs(typical[kind]) / 2
    if abs(typical[kind]) > MOVING and is_typical.mean() > STEADY:
        label, agrees = LABELS[kind][int(typical[kind] < 0)], is_typical
    elif (shake(movement) or 0.0) > SHAKY:
        label, agrees = "handheld", is_moving
    else:
        label, agrees = "static", ~is_moving
    pan, tilt, zoom, roll = (round(float(speed), 4) for speed in np.median(speeds, axis=0))
    details = {"label": label, "pan": pan, "tilt": tilt, "zoom": zoom, "roll": round(math.degrees(roll), 2)}
    return float(agrees.mean() * movement.fit.mean()), details
