"""Motion by the motion vectors of a clip, on moves made from a real frame."""

import pytest

from pyramid_model.metrics.scorers import SCORERS, ClipView

HEIGHT, WIDTH = 144, 256


@pytest.mark.parametrize("pixels", [1, 4, 10])
def test_a_pan_is_measured_within_a_tenth_by_flow_and_by_codec(picture, tmp_path, pixels, filmed, encoded):
    frames = filmed(picture, right=-pixels)
    clip = ClipView(frames, 24.0, encoded(tmp_path / "pan.mp4", frames))
    expected = pixels * 24 / WIDTH
    assert SCORERS["flow"](clip).value == pytest.approx(expected, rel=0.1)
    assert SCORERS["codec_motion"](clip).value == pytest.approx(expected, rel=0.1)
    camera = SCORERS["camera_motion"](clip)
    assert camera.details["label"] == "pan right"
    assert camera.details["pan"] == pytest.approx(expected, rel=0.05)
    assert camera.value > 0.8


def test_codec_motion_tells_where_nothing_moves(picture, tmp_path, filmed, encoded):
    frames = filmed(picture, right=-6.0)
    frames[:, : HEIGHT // 2] = frames[0, : HEIGHT // 2]
    score = SCORERS["codec_motion"](ClipView(frames, 24.0, encoded(tmp_path / "half.mp4", frames)))
    assert score.value > 0.2
    assert score.details["quietest_ninth"] < 0.05
