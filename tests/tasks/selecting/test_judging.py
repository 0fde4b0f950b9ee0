"""The rules by which a clip is kept: each that it breaks is a reason."""

import pytest

from tasks.selecting.select import select
from tasks.tables.rows import ok_row

ALL_TRAIN = {"val_fraction": 0.0, "min_val_clips": 0}


def test_each_rule_that_a_clip_breaks_is_named(tables, with_changes, clip):
    tables.clips(clip("a2"), motion=0.5)
    tables.clips(clip("a3"), motion=20)
    tables.clips(clip("a4", height=32, width=54))
    tables.clips(clip("a5", num_frames=6))
    tables.add("clips", [ok_row({}, **clip("a6"))])
    tables.videos(attempt=2, a=[f"a{n}" for n in range(7)])
    result = select(tables.run, with_changes(min_frames=8))
    assert {name: reasons for name, (keep, reasons, *_) in tables.verdicts().items() if not keep} == {
        "a2": ["motion_low"],
        "a3": ["motion_high"],
        "a4": ["too_small"],
        "a5": ["too_few_frames", "too_short"],
        "a6": ["motion_missing"],
    }
    assert result.errors["too_small"] == 1
    assert result.num_in == 8


def test_of_duplicates_the_best_that_other_rules_keep_stays(tables, with_changes, clip):
    tables.clips(clip("a2"), motion=0.5)
    tables.clips(clip("d0"), clip("d1"))
    tables.videos(attempt=2, a=["a0", "a1", "a2"])
    tables.videos(d=["d0", "d1"])
    tables.groups("a2 a0 d0", "a1 d1")
    select(tables.run, with_changes())
    reasons = {name: verdict[1] for name, verdict in tables.verdicts().items() if verdict[1]}
    assert reasons == {"a2": ["motion_low", "duplicate_phash"], "d0": ["duplicate_phash"], "d1": ["duplicate_phash"]}
    select(tables.run, with_changes(drop_duplicates=()))
    assert tables.kept() == {"a0", "a1", "c0", "d0", "d1"}


def test_methods_are_applied_one_after_the_other_so_that_no_group_is_lost(tables, with_changes):
    tables.groups("a0 a1")
    tables.groups("a1 c0", method="semantic")
    select(tables.run, with_changes())
    assert tables.kept() == {"a0", "c0"}  # a1 is gone already, so c0 repeats nothing


def test_percentiles_are_taken_of_all_clips_and_their_values_are_told(tables, with_changes):
    tables.many(e=101)
    tables.videos(e=[f"e{number}" for number in range(101)])
    for name in ("a0", "a1", "c0"):
        tables.scores("beauty", **{name: 0.5})
    limits = {"beauty": {"min_percentile": 10, "max_percentile": 90, "max": 0.6}}
    result = select(tables.run, with_changes(thresholds=limits, **ALL_TRAIN))
    told = result.thresholds["beauty"]
    assert (told.min, told.max) == (pytest.approx(0.1, abs=0.02), 0.6)  # of two upper bounds the stricter one
    assert f"beauty from {told.min:.4g} to 0.6" in result.note
    values = [int(name[1:]) / 101 for name in tables.kept() if name[0] == "e"]
    assert min(values) >= told.min
    assert max(values) <= 0.6


def test_figures_of_the_clip_may_have_limits_without_any_scorer(tables, with_changes, clip):
    tables.clips(clip("a2", end_s=9.0), clip("a3", height=54, width=200))
    tables.videos(attempt=2, a=["a0", "a1", "a2", "a3"])
    limits = {"duration_s": {"max": 4}, "aspect": {"max": 3}, "fps": {"min": 16}}
    select(tables.run, with_changes(thresholds=limits))
    reasons = {name: verdict[1] for name, verdict in tables.verdicts().items() if verdict[1]}
    assert reasons == {"a2": ["duration_s_high"], "a3": ["aspect_high"]}
