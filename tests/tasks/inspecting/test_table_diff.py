"""Differences of two versions of a table: ids, statuses, selections, distributions of scores."""

from dataclasses import replace

import pytest

from tasks.inspecting.table_diff import diff, score_shifts, selection_diff
from tasks.tables.content_ids import content_id
from tasks.tables.delta import table_version
from tasks.tables.rows import bad_row, ok_row


def test_diff_names_new_ids_changed_statuses_and_columns(small):
    small.append("clips", [bad_row({}, ("timeout", "slow"), clip_id=small.clip_id(9))])
    before = table_version(small.root, "clips")
    small.append("clips", [small.clip(4)])
    small.append("clips", [small.clip(9, attempt=2)])
    changes = diff(small.root, "clips", before, table_version(small.root, "clips"))
    assert (changes.added, changes.removed) == ([small.clip_id(4)], [])
    assert changes.status_changes == [(small.clip_id(9), "failed", "ok")]
    assert changes.columns["num_frames"] == ("10 … 30, mean 20", "10 … 90, mean 38")


def judged(number: int, reasons: list[str], split: str = "train") -> dict:
    own = {"keep": not reasons, "drop_reasons": reasons, "split": split, "bucket": "64x64x9@8"}
    return ok_row({}, selection_id=content_id(number, reasons, split), clip_id=content_id("clip", number), **own)


def test_a_diff_of_selections_names_clips_that_are_newly_kept_and_dropped_by_reason(small):
    before = table_version(small.root, "selections")
    verdicts = [judged(1, []), judged(2, ["duplicate_phash"]), judged(3, ["blur_low"]), judged(4, [])]
    small.append("selections", verdicts, replace(small.LINEAGE, params_hash="stricter"))
    middle = table_version(small.root, "selections")
    changes = selection_diff(small.root, before, middle)
    assert (changes.num_kept, changes.num_judged, changes.same_settings) == ((1, 2), (3, 4), False)
    assert changes.newly_kept == {"motion": [small.clip_id(1)], "new clip": [small.clip_id(4)]}
    assert changes.newly_dropped == {"duplicate_phash": [small.clip_id(2)]}
    small.append("selections", [judged(4, [], "val")], replace(small.LINEAGE, params_hash="stricter"))
    changes = selection_diff(small.root, middle, table_version(small.root, "selections"))
    assert (changes.newly_kept, changes.newly_dropped, changes.num_moved, changes.same_settings) == ({}, {}, 1, True)


def test_a_diff_of_scores_shows_which_distributions_moved_and_how_far(small):
    before = table_version(small.root, "scores")
    changed = {**small.score(1, "motion", 9.5), "score_id": content_id("other settings")}
    unlabelled = ok_row({}, score_id=content_id("camera"), clip_id=small.clip_id(1), scorer="camera", details="{}")
    small.append("scores", [changed, small.score(4, "motion", 9.0), unlabelled])
    [shift] = score_shifts(small.root, before, table_version(small.root, "scores"))
    assert (shift.scorer, shift.num_changed, shift.medians) == ("motion", 1, (2.0, 9.0))
    assert (shift.before.edges, sum(shift.before.counts), sum(shift.after.counts)) == (shift.after.edges, 3, 4)
    # three of four are at least 9 now, one of three was: 2/3 - 1/4
    assert shift.distance == pytest.approx(2 / 3 - 1 / 4)
    assert score_shifts(small.root, before, before) == []
