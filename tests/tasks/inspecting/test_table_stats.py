"""Figures of one table, as `pyramid manifest stats` prints them."""

import json

from typer.testing import CliRunner

from flows.cli.manifest import app
from tasks.inspecting.table_stats import histogram, histograms, labels, reason_counts, score_label, status_counts
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, bad_row, ok_row


def test_a_score_is_labelled_with_its_unit_or_range_and_the_better_direction():
    assert score_label("borders") == "share of the frame that is letterbox or pillarbox, 0 to 1; lower is better"
    assert score_label("brightness") == "mean luma, 0 to 255"
    assert score_label("duration_s") == "length of the clip, s"
    assert score_label("watermark") == ""  # named by a recipe


def test_the_histograms_of_scores_come_with_what_each_score_is(tmp_path):
    rows = [
        ok_row({}, score_id=f"{scorer}{number}", clip_id=str(number), scorer=scorer, value=number / 2)
        for scorer in ("borders", "watermark")
        for number in range(3)
    ]
    append_block(str(tmp_path), "scores", rows, "scores", Lineage("run", "step", "1", "settings", "code"))
    output = CliRunner().invoke(app, ["stats", str(tmp_path), "scores"], env={"COLUMNS": "120"}).output
    assert "share of the frame that is letterbox or pillarbox, 0 to 1; lower is better" in output
    assert output.count("watermark") == 1


def test_a_histogram_keeps_every_value_and_both_ends():
    bins = histogram("x", [0.0, 0.1, 5.0, 10.0], num_bins=10)
    assert (bins.counts, bins.edges[0], bins.edges[-1]) == ([2, 0, 0, 0, 0, 1, 0, 0, 0, 1], 0.0, 10.0)
    assert bins.spark == "█    ▄   ▄"
    assert histogram("x", [3.0, 3.0]).counts == [2]
    assert histogram("x", []) is None


def test_drop_reasons_count_each_rule_alone_and_in_order():
    reasons = reason_counts([["motion"], [], ["motion", "blur"]])
    assert [(reason.reason, reason.alone, reason.in_order, reason.only) for reason in reasons] == [
        ("motion", 2, 2, 1),
        ("blur", 1, 0, 0),
    ]


def test_rules_of_a_score_stand_together_and_duplicates_and_quotas_come_last():
    lists = [["over_max_clips"], ["flow_low"], ["duplicate_phash"], ["too_short"], ["motion_low", "too_short"]]
    reasons = reason_counts([*lists, ["flow_high"], ["not_in_low"]])
    ordered = ["not_in_low", "flow_low", "flow_high", "motion_low", "too_short", "duplicate_phash", "over_max_clips"]
    assert [reason.reason for reason in reasons] == ordered


def test_stats_count_statuses_and_bin_numbers(small):
    small.append("clips", [bad_row({}, ("timeout", "took too long"), clip_id=small.clip_id(9))])
    assert status_counts(small.root, "clips") == {("ok", ""): 3, ("failed", "timeout"): 1}
    assert [(bins.name, bins.edges[0], bins.edges[-1]) for bins in histograms(small.root, "scores")] == [
        ("blur", 20.0, 300.0),
        ("motion", 0.5, 9.0),
    ]


def test_labels_come_from_the_details_of_the_newest_score(small):
    nested = {"details": json.dumps({"frames": [{"label": "cat"}]}), "score_id": content_id("frames")}
    small.append("scores", [small.score(1, "classifier", 0.5) | nested])
    assert labels(small.root) == {}
    for number, label in enumerate(("static", "pan left")):
        details = {"details": json.dumps({"label": label}), "score_id": content_id("camera", number)}
        small.append("scores", [small.score(1, "camera_motion", 0.5) | details])
    assert labels(small.root) == {"camera_motion": {small.clip_id(1): "pan left"}}
