"""All scorers on moves and stills made from a real frame, whose values are known. A few seconds."""

import numpy as np
import pytest

from pyramid_model.metrics.scorers import IN_DECODE_PASS, SCORERS, ClipView

HEIGHT, WIDTH = 144, 256


def test_a_still_gives_no_motion_of_any_kind(picture, tmp_path, view, encoded):
    still = np.repeat(view(picture)[None], 13, axis=0)
    clip = ClipView(still, 24.0, encoded(tmp_path / "still.mp4", still))
    for scorer in ("motion", "flow", "shake", "codec_motion"):
        assert SCORERS[scorer](clip).value == pytest.approx(0, abs=1e-6), scorer
    camera = SCORERS["camera_motion"](clip)
    assert (camera.value, camera.details["label"]) == (1.0, "static")


def test_the_same_move_at_twice_the_frame_rate_is_as_fast(picture, tmp_path, filmed, encoded):
    slow, fast = filmed(picture, 24, right=4.0), filmed(picture, 48, right=2.0)
    clips = [
        ClipView(frames, fps, encoded(tmp_path / f"{fps}.mp4", frames, fps)) for fps, frames in ((24, slow), (48, fast))
    ]
    for scorer in ("flow", "codec_motion"):
        values = [SCORERS[scorer](clip).value for clip in clips]
        assert values[1] == pytest.approx(values[0], rel=0.1), scorer


@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_scorer_takes_clips_of_few_frames(picture, tmp_path, length, filmed, encoded):
    frames = filmed(picture, length, right=3.0)
    clip = ClipView(frames, 24.0, encoded(tmp_path / "short.mp4", frames))
    for name, scorer in SCORERS.items():
        value, _ = scorer(clip)
        assert value is None or np.isfinite(value), name
    assert set(IN_DECODE_PASS) <= set(SCORERS)


def test_the_same_frames_have_the_same_scores_wherever_they_lie_in_memory(picture, filmed):
    frames = filmed(picture, 25, right=3.3, zoom=0.01)
    in_the_way = []
    for name in IN_DECODE_PASS:
        scores = set()
        for size in range(24):
            in_the_way.append(np.empty(16 * size + 8, np.uint8))  # what comes next is aligned otherwise
            scores.add(repr(SCORERS[name](ClipView(frames, 24.0, ""))))
        assert len(scores) == 1, name
