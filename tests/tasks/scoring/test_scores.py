"""Scores that the decode pass did not write are added, and no others. About 5 s on a warm Ray."""

import json
import os

import cv2
import numpy as np
import pytest

from pyramid_model.metrics.scorers import ClipView
from pyramid_model.video.video import write_video
from tasks.cutting.clips import ClipsConfig
from tasks.running.run import RayConfig, Run, lineage
from tasks.scoring.scores import ScoresConfig, score_id, score_rows, scores
from tasks.tables.appending import append_block
from tasks.tables.delta import read_table
from tasks.tables.rows import ok_row

FIRST = ("motion", "sharpness", "brightness")


def gray(frames) -> ClipView:
    """What scorers see of RGB frames, (t h w 3) uint8."""
    return ClipView(np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]), 24.0, "")


@pytest.fixture
def three_clips(tmp_path, shoot):
    """A run with clips a, b and c, of which the media of c is gone; a has its motion score already."""
    run = Run(root=str(tmp_path / "root"), ray=RayConfig(num_cpus=2))
    made = lineage(run, "clips", "1", ClipsConfig())
    frames = shoot(tmp_path / "film.mp4", [12], size=(64, 96))
    rows = []
    for name in "abc":
        uri = run.media("clips", f"{name}.mp4")
        os.makedirs(os.path.dirname(uri), exist_ok=True)
        if name != "c":
            write_video(uri, frames, fps=24, crf=8)
        shape = {"height": 64, "width": 96, "fps_num": 24, "fps_den": 1, "start_frame": 0}
        rows.append(ok_row({}, clip_id=name, video_id="v", uri=uri, **shape))
    append_block(run.root, "clips", rows, "clips", made)
    append_block(run.root, "scores", score_rows("a", gray(frames), ["motion"]), "scores", made)
    append_block(run.root, "videos", [ok_row({}, video_id="v", clip_ids=list("abc"))], "videos", made)
    return run, frames


@pytest.mark.ray
def test_only_missing_scores_are_computed_and_unreadable_clips_fail_alone(ray_local, three_clips):
    run, frames = three_clips
    config = ScoresConfig(scorers=FIRST, block_size=4)
    result = scores(run, config)
    assert (result.num_in, result.num_done, result.num_ok, result.num_failed) == (9, 1, 5, 3)
    assert result.errors == {"missing": 3}
    rows = {(row["clip_id"], row["scorer"]): row for row in read_table(run.root, "scores").to_pylist()}
    expected = {row["scorer"]: row["value"] for row in score_rows("a", gray(frames), FIRST)}
    for clip_id in "ab":
        for scorer, value in expected.items():
            assert rows[clip_id, scorer]["value"] == pytest.approx(value, rel=0.2), (clip_id, scorer)
    assert json.loads(rows["b", "motion"]["details"]) == {"num_frames": 12, "height": 64, "width": 96}
    assert scores(run, config).num_new == 0
    later = scores(run, ScoresConfig(scorers=("codec_motion", *FIRST)))
    assert (later.num_done, later.num_ok, later.num_failed) == (9, 2, 1)


def test_ids_tell_scorers_and_clips_apart():
    assert len({score_id(clip, scorer) for clip in "ab" for scorer in ("motion", "sharpness")}) == 4


def test_an_unknown_scorer_is_refused():
    with pytest.raises(ValueError, match="no scorer is called beauty: there are motion, sharpness, brightness"):
        ScoresConfig(scorers=("beauty",))
