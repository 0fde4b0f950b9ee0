"""Black bars over a real frame."""

import cv2
import numpy as np
import pytest

from pyramid_model.video.borders import border_share, picture_box

HEIGHT, WIDTH = 144, 256


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
def test_bars_are_found_to_the_pixel(picture, bars, filmed):
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


def test_a_logo_and_subtitles_may_stand_in_the_bars(picture, filmed):
    frames = barred(filmed(picture, 12, right=3.0), top=24, bottom=24)
    frames[:, 4:14, 220:248] = 200
    cv2.putText(frames[7], "and so it begins, he said", (50, 138), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255)
    assert picture_box(frames) == (0, 24, WIDTH, HEIGHT - 24)


def test_dark_scenes_fades_and_titles_have_no_box(picture, filmed):
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


def test_a_scene_that_fades_in_keeps_its_box(picture, filmed):
    frames = barred(filmed(picture, 12, right=3.0), top=18, bottom=18)
    frames[:6] = frames[:6] // 16
    assert picture_box(frames) == (0, 18, WIDTH, HEIGHT - 18)
