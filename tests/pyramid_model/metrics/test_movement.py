"""Movement of the picture and of the camera, on moves made from a real frame."""

import cv2
import numpy as np
import pytest

from pyramid_model.metrics.movement import camera_motion, flow_speed, movement, shake

HEIGHT, WIDTH = 144, 256


def test_the_same_move_in_half_the_size_is_as_fast(picture, filmed):
    large = filmed(picture, right=-4.0)
    small = np.stack([cv2.resize(frame, (128, 72), interpolation=cv2.INTER_AREA) for frame in large])
    speeds = [flow_speed(movement(frames, 24.0)) for frames in (large, small)]
    assert speeds[1] == pytest.approx(speeds[0], rel=0.1)


@pytest.mark.parametrize(
    ("speeds", "label"),
    [
        ({"right": 2.0}, "pan left"),
        ({"down": 2.0}, "tilt up"),
        ({"down": -2.0}, "tilt down"),
        ({"zoom": 0.01}, "zoom in"),
        ({"zoom": -0.01}, "zoom out"),
        ({"turned": -1.0}, "roll clockwise"),
        ({"turned": 1.0}, "roll counterclockwise"),
        ({"right": -0.05}, "static"),
    ],
)
def test_a_steady_move_of_a_real_picture_is_named(picture, speeds, label, filmed):
    confidence, details = camera_motion(movement(filmed(picture, **speeds), 24.0))
    assert details["label"] == label
    assert confidence is not None
    assert confidence > 0.7


def test_speeds_of_zoom_and_roll_are_those_that_were_filmed(picture, filmed):
    _, details = camera_motion(movement(filmed(picture, zoom=0.01), 24.0))
    assert details["zoom"] == pytest.approx(0.24, rel=0.1)
    _, details = camera_motion(movement(filmed(picture, turned=1.0), 24.0))
    assert details["roll"] == pytest.approx(-24, rel=0.15)


def test_somebody_who_walks_through_does_not_move_the_camera(picture, view):
    frames = np.repeat(view(picture)[None], 24, axis=0).copy()
    walker = np.random.default_rng(0).integers(0, 256, (90, 60), np.uint8)
    for t, frame in enumerate(frames):
        frame[40:130, 8 * t : 8 * t + 60] = walker[:, : max(0, min(60, WIDTH - 8 * t))]
    confidence, details = camera_motion(movement(frames, 24.0))
    assert details["label"] == "static"
    assert confidence is not None
    assert confidence > 0.5


def test_a_hand_shakes_more_than_a_tripod_and_is_told_from_a_pan(picture, view):
    wobble = np.random.default_rng(1).normal(0, 1.0, (48, 2))
    steady, shaky = (
        np.stack([view(picture, -1.5 * t + weight * dx, weight * dy) for t, (dx, dy) in enumerate(wobble)])
        for weight in (0, 1)
    )
    held = np.stack([view(picture, dx, dy) for dx, dy in wobble])
    tripod, moved, hand = (shake(movement(frames, 24.0)) for frames in (steady, shaky, held))
    assert tripod < 0.001 < 0.003 < min(moved, hand)
    labels = [camera_motion(movement(frames, 24.0))[1]["label"] for frames in (steady, shaky, held)]
    assert labels == ["pan right", "pan right", "handheld"]


def test_a_blank_wall_moves_nowhere_and_nobody_is_sure(picture):
    wall = np.full((12, HEIGHT, WIDTH), 90, np.uint8)
    confidence, details = camera_motion(movement(wall, 24.0))
    assert (confidence, details["label"]) == (0.0, "static")


def test_movement_looks_twelve_times_a_second_where_there_are_as_many_frames(picture, filmed):
    frames = filmed(picture, 25, right=1.0)
    intervals = [movement(frames, fps).interval_s for fps in (6.0, 24.0, 60.0)]
    assert intervals == pytest.approx([1 / 6, 1 / 12, 1 / 12])
