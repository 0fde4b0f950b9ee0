"""Of the scores of a clip under several settings, the newest counts."""

import numpy as np
import pytest

from tasks.running.run import Run, lineage
from tasks.scoring.newest import make_newest, score_arrays
from tasks.scoring.scores import ScoresConfig
from tasks.tables.appending import append_block
from tasks.tables.delta import bad_row, ok_row, read_table


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
    found = score_arrays(run.root, ["b", "a", "c"])
    np.testing.assert_equal(found, {"beauty": [np.nan, 2, np.nan], "motion": [np.nan, 7, np.nan]})
    assert score_arrays(run.root, ["b"]) == {}


def test_scores_of_earlier_settings_become_the_newest_again_without_a_new_value(scored):
    run, made = scored
    assert make_newest(run, ["a1", "a-motion", "b1"], ["a", "b"], made) == 2
    np.testing.assert_equal(score_arrays(run.root, ["a", "b"]), {"beauty": [1, 1], "motion": [7, np.nan]})
    assert make_newest(run, ["a1", "a-motion", "b1"], ["a", "b"], made) == 0
    assert read_table(run.root, "scores", latest=False).num_rows == 8
