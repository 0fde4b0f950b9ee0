"""Scores of clips on moves, stills, fades and bars made from a real frame, whose values are known. A few seconds."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from pyramid_model.metrics.frames import black_ratio, exposure, static_ratio, white_ratio
from pyramid_model.metrics.movement import camera_motion, flow_speed, movement, shake
from pyramid_model.metrics.scorers import IN_DECODE_PASS, SCORERS, ClipView
from pyramid_model.video.borders import border_share, picture_box
from pyramid_model.video.footage import Footage
from pyramid_model.video.video import open_video

SAMPLE = Path(__file__).parents[2] / "datasets" / "sample" / "bbb_meadow.mp4"
HEIGHT, WIDTH = 144, 256


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A frame of a real video, gray uint8 (480 854)."""
    with Footage(str(SAMPLE)) as footage:
        frames = footage.frames()
        return cv2.cvtColor(next(frame for frame in frames if frame.index == 240).rgb(), cv2.COLOR_RGB2GRAY)


def view(picture: np.ndarray, right=0.0, down=0.0, scale=1.0, turned=0.0) -> np.ndarray:
    """What a camera sees of the picture: the content moved by px, grown, and turned clockwise by degrees."""
    height, width = picture.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -turned, 0.5 * scale)
    matrix[:, 2] += [WIDTH / 2 + right - width / 2, HEIGHT / 2 + down - height / 2]
    return cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)


def filmed(picture: np.ndarray, num_frames: int = 24, **speeds: float) -> np.ndarray:
    """Frames (t h w) of a steady move: `right`, `down` in px, `zoom` in log scale and `turned` in degrees a frame."""
    zoom = speeds.pop("zoom", 0.0)
    steps = np.arange(num_frames) - num_frames / 2
    return np.stack(
        [view(picture, scale=np.exp(zoom * t), **{n: speed * t for n, speed in speeds.items()}) for t in steps]
    )


def encoded(path: Path, frames: np.ndarray, fps: int = 24) -> str:
    """The frames as a clip of ours; its path."""
    with open_video(str(path), Fraction(fps)) as video:
        for frame in frames:
            video.write(np.repeat(frame[None, ..., None], 3, axis=-1))
    return str(path)


# ---- motion ----------------------------------------------------------------------------------------------------------


def test_a_still_gives_no_motion_of_any_kind(picture, tmp_path):
    still = np.repeat(view(picture)[None], 13, axis=0)
    clip = ClipView(still, 24.0, encoded(tmp_path / "still.mp4", still))
    for scorer in ("motion", "flow", "shake", "codec_motion"):
        assert SCORERS[scorer](clip).value == pytest.approx(0, abs=1e-6), scorer
    camera = SCORERS["camera_motion"](clip)
    assert (camera.value, camera.details["label"]) == (1.0, "static")


@pytest.mark.parametrize("pixels", [1, 4, 10])
def test_a_pan_is_measured_within_a_tenth_by_flow_and_by_codec(picture, tmp_path, pixels):
    frames = filmed(picture, right=-pixels)
    clip = ClipView(frames, 24.0, encoded(tmp_path / "pan.mp4", frames))
    expected = pixels * 24 / WIDTH
    assert SCORERS["flow"](clip).value == pytest.approx(expected, rel=0.1)
    assert SCORERS["codec_motion"](clip).value == pytest.approx(expected, rel=0.1)
    camera = SCORERS["camera_motion"](clip)
    assert camera.details["label"] == "pan right"
    assert camera.details["pan"] == pytest.approx(expected, rel=0.05)
    assert camera.value > 0.8


def test_the_same_move_at_twice_the_frame_rate_is_as_fast(picture, tmp_path):
    slow, fast = filmed(picture, 24, right=4.0), filmed(picture, 48, right=2.0)
    clips = [
        ClipView(frames, fps, encoded(tmp_path / f"{fps}.mp4", frames, fps)) for fps, frames in ((24, slow), (48, fast))
    ]
    for scorer in ("flow", "codec_motion"):
        values = [SCORERS[scorer](clip).value for clip in clips]
        assert values[1] == pytest.approx(values[0], rel=0.1), scorer


def test_the_same_move_in_half_the_size_is_as_fast(picture):
    large = filmed(picture, right=-4.0)
    small = np.stack([cv2.resize(frame, (128, 72), interpolation=cv2.INTER_AREA) for frame in large])
    speeds = [flow_speed(movement(frames, 24.0)) for frames in (large, small)]
    assert speeds[1] == pytest.approx(speeds[0], rel=0.1)


def test_codec_motion_tells_where_nothing_moves(picture, tmp_path):
    frames = filmed(picture, right=-6.0)
    frames[:, : HEIGHT // 2] = frames[0, : HEIGHT // 2]
    score = SCORERS["codec_motion"](ClipView(frames, 24.0, encoded(tmp_path / "half.mp4", frames)))
    assert score.value > 0.2
    assert score.details["quietest_ninth"] < 0.05


# ---- camera ----------------------------------------------------------------------------------------------------------


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
def test_a_steady_move_of_a_real_picture_is_named(picture, speeds, label):
    confidence, details = camera_motion(movement(filmed(picture, **speeds), 24.0))
    assert details["label"] == label
    assert confidence is not None
    assert confidence > 0.7


def test_speeds_of_zoom_and_roll_are_those_that_were_filmed(picture):
    _, details = camera_motion(movement(filmed(picture, zoom=0.01), 24.0))
    assert details["zoom"] == pytest.approx(0.24, rel=0.1)
    _, details = camera_motion(movement(filmed(picture, turned=1.0), 24.0))
    assert details["roll"] == pytest.approx(-24, rel=0.15)


def test_somebody_who_walks_through_does_not_move_the_camera(picture):
    frames = np.repeat(view(picture)[None], 24, axis=0).copy()
    walker = np.random.default_rng(0).integers(0, 256, (90, 60), np.uint8)
    for t, frame in enumerate(frames):
        frame[40:130, 8 * t : 8 * t + 60] = walker[:, : max(0, min(60, WIDTH - 8 * t))]
    confidence, details = camera_motion(movement(frames, 24.0))
    assert details["label"] == "static"
    assert confidence is not None
    assert confidence > 0.5


def test_a_hand_shakes_more_than_a_tripod_and_is_told_from_a_pan(picture):
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


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_static_ratio_counts_repeated_frames(picture):
    moving = filmed(picture, 12, right=3.0)
    assert static_ratio(moving) == 0
    assert static_ratio(np.repeat(moving, 2, axis=0)) == pytest.approx(12 / 23)
    assert static_ratio(np.repeat(moving[:1], 5, axis=0)) == 1
    assert static_ratio(moving[:1]) == 0


def test_exposure_is_the_share_of_lost_pixels_at_either_end():
    frames = np.full((3, 20, 20), 128, np.uint8)
    frames[:, :5], frames[:, -1] = 0, 255
    assert exposure(frames) == pytest.approx((0.25, 0.05))


def test_a_fade_from_black_and_a_flash_are_counted_in_frames(picture):
    frames = np.repeat(view(picture)[None], 20, axis=0)
    frames[:4] = frames[:4] // 20
    frames[4] = 250
    assert black_ratio(frames) == pytest.approx(4 / 20)
    assert white_ratio(frames) == pytest.approx(1 / 20)


# ---- borders ---------------------------------------------------------------------------------------------------------


def barred(frames: np.ndarray, top=0, bottom=0, left=0, right=0) -> np.ndarray:
    """The frames with black bars over their edges."""
    frames = frames.copy()
    height, width = frames.shape[1:]
    for rows, columns in (
        (slice(0, top), slice(None)),
        (slice(height - bottom, None), slice(None)),
        (slice(None), slice(0, left)),
        (slice(None), slice(width - right, None)),
    ):
        frames[:, rows, columns] = 0
    return frames


@pytest.mark.parametrize(
    "bars",
    [{"top": 18, "bottom": 18}, {"left": 32, "right": 32}, {"top": 9, "bottom": 11, "left": 30, "right": 24}],
)
def test_bars_are_found_to_the_pixel(picture, bars):
    box = picture_box(barred(filmed(picture, 12, right=3.0), **bars))
    expected = (
        bars.get("left", 0),
        bars.get("top", 0),
        WIDTH - bars.get("right", 0),
        HEIGHT - bars.get("bottom", 0),
    )
    assert box == expected
    inside = (expected[2] - expected[0]) * (expected[3] - expected[1])
    assert border_share(box, HEIGHT, WIDTH) == pytest.approx(1 - inside / (HEIGHT * WIDTH))


def test_a_logo_and_subtitles_may_stand_in_the_bars(picture):
    frames = barred(filmed(picture, 12, right=3.0), top=24, bottom=24)
    frames[:, 4:14, 220:248] = 200
    cv2.putText(frames[7], "and so it begins, he said", (50, 138), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255)
    assert picture_box(frames) == (0, 24, WIDTH, HEIGHT - 24)


def test_dark_scenes_fades_and_titles_have_no_box(picture):
    frames = filmed(picture, 12, right=3.0)
    assert picture_box(frames) is None
    assert picture_box(frames // 16) is None
    assert picture_box(np.zeros_like(frames)) is None
    vignette = np.minimum(np.linspace(0, 2, HEIGHT), np.linspace(2, 0, HEIGHT)).clip(0, 1)[:, None]
    assert picture_box((frames * vignette).astype(np.uint8)) is None
    night = frames.copy()
    night[:, :60] = 8  # a sky above a straight horizon
    assert picture_box(night) is None
    title = np.zeros_like(frames)
    for frame in title:
        cv2.putText(frame, "THE END", (40, 80), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 3)
    assert picture_box(title) is None


def test_a_scene_that_fades_in_keeps_its_box(picture):
    frames = barred(filmed(picture, 12, right=3.0), top=18, bottom=18)
    frames[:6] = frames[:6] // 16
    assert picture_box(frames) == (0, 18, WIDTH, HEIGHT - 18)


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_scorer_takes_clips_of_few_frames(picture, tmp_path, length):
    frames = filmed(picture, length, right=3.0)
    clip = ClipView(frames, 24.0, encoded(tmp_path / "short.mp4", frames))
    for name, scorer in SCORERS.items():
        value, _ = scorer(clip)
        assert value is None or np.isfinite(value), name
    assert set(IN_DECODE_PASS) <= set(SCORERS)


def test_movement_looks_twelve_times_a_second_where_there_are_as_many_frames(picture):
    frames = filmed(picture, 25, right=1.0)
    intervals = [movement(frames, fps).interval_s for fps in (6.0, 24.0, 60.0)]
    assert intervals == pytest.approx([1 / 6, 1 / 12, 1 / 12])


def test_the_same_frames_have_the_same_scores_wherever_they_lie_in_memory(picture):
    frames = filmed(picture, 25, right=3.3, zoom=0.01)
    in_the_way = []
    for name in IN_DECODE_PASS:
        found = set()
        for size in range(24):
            in_the_way.append(np.empty(16 * size + 8, np.uint8))  # what comes next is aligned otherwise
            found.add(repr(SCORERS[name](ClipView(frames, 24.0, ""))))
        assert len(found) == 1, name
