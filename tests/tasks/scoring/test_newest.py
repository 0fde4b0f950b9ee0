"""Of the scores of a clip under several settings, the newest counts."""

import subprocess
import sys

import numpy as np
import pytest

from tasks.running.run import Run, lineage
from tasks.scoring.newest import make_newest, score_arrays
from tasks.scoring.scores import ScoresConfig
from tasks.tables.appending import append_block
from tasks.tables.delta import read_table
from tasks.tables.rows import Lineage, bad_row, ok_row


@pytest.fixture
def scored(tmp_path):
    """Clip a was scored under settings 1, then 2; that of b failed at last; that of c has no number."""
    run = Run(root=str(tmp_path))
    made = lineage(run, "scores", "1", ScoresConfig())
    rows = [
        ok_row({}, score_id="a1", clip_id="a", scorer="beauty", value=1.0),
        ok_row({}, score_id="a-motion", clip_id="a", scorer="motion", value=7.0),
        ok_row({}, score_id="b1", clip_id="b", scorer="beauty", value=1.0),
        ok_row({}, score_id="a2", clip_id="a", scorer="beauty", value=2.0),
        bad_row({}, ("truncated", "b ends early"), score_id="b2", clip_id="b", scorer="beauty"),
        ok_row({}, score_id="c1", clip_id="c", scorer="layout", value=None),
    ]
    for row in rows:
        append_block(run.root, "scores", [row], row["score_id"], made)
    return run, made


def test_the_newest_row_of_a_clip_and_scorer_counts(scored):
    run, _ = scored
    arrays = score_arrays(run.root, ["b", "a", "c"])
    np.testing.assert_equal(arrays, {"beauty": [np.nan, 2, np.nan], "motion": [np.nan, 7, np.nan]})
    assert score_arrays(run.root, ["b"]) == {}


def test_scores_of_earlier_settings_become_the_newest_again_without_a_new_value(scored):
    run, made = scored
    assert make_newest(run, ["a1", "a-motion", "b1"], ["a", "b"], made)[0] == 2
    np.testing.assert_equal(score_arrays(run.root, ["a", "b"]), {"beauty": [1, 1], "motion": [7, np.nan]})
    assert make_newest(run, ["a1", "a-motion", "b1"], ["a", "b"], made)[0] == 0
    assert read_table(run.root, "scores", newest=False).num_rows == 8


def test_another_run_that_replaces_scores_does_not_change_what_a_pinned_version_reads(tmp_path):
    run = Run(root=str(tmp_path))
    mine, theirs = (Lineage(name, "scores", "1", "params", "code") for name in ("mine", "theirs"))

    def score(weights: str, value: float) -> dict:
        return ok_row({}, score_id=weights, clip_id="clip", scorer="watermark", value=value)

    append_block(run.root, "scores", [score("weights a", 0.1)], "mine", mine)
    append_block(run.root, "scores", [score("weights b", 0.9)], "theirs", theirs)
    num_rows, version = make_newest(run, ["weights a"], ["clip"], mine)
    assert make_newest(run, ["weights b"], ["clip"], theirs)[0] == 1
    assert num_rows == 1
    assert score_arrays(run.root, ["clip"], version)["watermark"].tolist() == [0.1]
    assert score_arrays(run.root, ["clip"])["watermark"].tolist() == [0.9]


PINNING = """
import sys
from tasks.running.run import Run
from tasks.scoring.newest import make_newest, score_arrays
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, ok_row

root, weights = sys.argv[1:]
made = Lineage(weights, "scores", "1", weights, "code")
clips = [content_id("clip", number) for number in range(8)]
ids = [content_id(clip, weights) for clip in clips]
for clip, score_id in zip(clips, ids):
    row = ok_row({}, score_id=score_id, clip_id=clip, scorer="s", value=float(ord(weights)))
    append_block(root, "scores", [row], clip, made)
for turn in range(4):
    version = make_newest(Run(root=root), ids, clips, made)[1]
    assert set(score_arrays(root, clips, version)["s"].tolist()) == {float(ord(weights))}
"""


def test_two_processes_with_other_weights_each_read_their_own_scores(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", PINNING, str(tmp_path), weights]) for weights in "ab"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
