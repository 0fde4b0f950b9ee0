"""Selection: every clip gets a verdict with its reasons, and no clip leaks from one split into another. About 2 s."""

import re
from datetime import datetime, timedelta

import pytest
from pydantic import ValidationError

from tasks.running.run import params_hash
from tasks.scoring.scores import score_id
from tasks.selecting.select import check_limited, select
from tasks.selecting.select_config import Bounds, SelectConfig
from tasks.tables import appending
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.current import selected_clips
from tasks.tables.delta import read_table, table_version
from tasks.tables.manifest import newest_selection, verdicts_of
from tasks.tables.rows import Lineage, ok_row


def test_every_clip_gets_a_verdict_and_the_second_run_writes_nothing(tables, with_changes):
    first = select(tables.run, with_changes())
    assert (first.num_in, first.num_ok, first.rows) == (3, 3, {"selections": 3})
    assert first.note == "3 of 3 clips kept (train 2, val 1)"
    assert tables.verdicts()["a0"] == (True, [], "48x80x9@24", "train")
    again = select(tables.run, with_changes())
    assert (again.num_in, again.num_done, again.num_new, again.rows) == (3, 3, 0, {})
    assert (again.selection, again.thresholds) == (first.selection, first.thresholds)


def test_the_settings_asked_for_last_count_although_the_clock_was_set_back(tables, monkeypatch, with_changes):
    first = select(tables.run, with_changes()).selection

    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(hours=3)

    monkeypatch.setattr(appending, "datetime", Earlier)
    dropped = select(tables.run, SelectConfig(thresholds={"motion": {"min": 250}})).selection
    assert newest_selection(tables.run.root) == dropped != first
    assert verdicts_of(tables.run.root)["keep"].to_pylist() == [False] * 3
    select(tables.run, with_changes())
    assert newest_selection(tables.run.root) == first


def test_a_selection_judges_the_clips_of_its_own_run_although_other_settings_cut_since(tables, with_changes, clip):
    """Two runs at once with other settings of the clips step: the videos' rows of one are newer, the clips of both."""
    tables.clips(clip("a2", start_frame=12), clip("c1", start_frame=12))
    selections = {}
    for made_with, a, c in (("ours", ["a0", "a1"], ["c0"]), ("theirs", ["a2"], ["c1"])):
        rows = [ok_row({}, video_id="film-a", clip_ids=a), ok_row({}, video_id="film-c", clip_ids=c)]
        append_block(tables.run.root, "videos", rows, "videos", Lineage("run", "clips", "2", made_with, ""))
    for made_with, expected in (("ours", {"a0", "a1", "c0"}), ("theirs", {"a2", "c1"}), ("ours", {"a0", "a1", "c0"})):
        result = select(tables.run, with_changes(clips=made_with))
        assert result.num_in == len(expected)
        selections[made_with] = result.selection
        chosen = {name: selected_clips(tables.run.root, selection)["clip_id"] for name, selection in selections.items()}
        assert set(chosen[made_with].to_pylist()) == expected
    assert set(chosen["theirs"].to_pylist()) == {"a2", "c1"}


def test_another_threshold_is_another_selection_beside_the_first(tables, with_changes):
    first = select(tables.run, with_changes()).selection
    loose = with_changes(thresholds={})
    second = select(tables.run, loose).selection
    assert first != second
    for selection in (first, second):
        assert selected_clips(tables.run.root, selection).num_rows == 3


def test_going_back_to_earlier_limits_makes_their_selection_the_newest_again(tables, with_changes, clip):
    tables.clips(clip("a2"), motion=0.5)
    tables.videos(attempt=2, a=["a0", "a1", "a2"])
    loose = with_changes(thresholds={})
    for config, num_clips in ((with_changes(), 3), (loose, 4), (with_changes(), 3), (loose, 4), (with_changes(), 3)):
        last = select(tables.run, config)
        assert selected_clips(tables.run.root).num_rows == num_clips
        assert newest_selection(tables.run.root) == last.selection
        assert verdicts_of(tables.run.root).num_rows == 4
    assert (last.num_new, last.num_done, last.rows) == (0, 4, {"selections": 1})
    assert select(tables.run, with_changes()).rows == {}


def test_a_pinned_version_does_not_see_a_later_selection(tables, with_changes, clip):
    select(tables.run, with_changes())
    versions = {name: table_version(tables.run.root, name) for name in ("selections", "clips")}
    tables.clips(clip("a7"))
    tables.videos(attempt=2, a=["a0", "a1", "a7"])
    select(tables.run, with_changes(thresholds={}))
    assert selected_clips(tables.run.root).num_rows == 4
    assert selected_clips(tables.run.root, versions=versions)["clip_id"].to_pylist() == ["a0", "a1", "c0"]


def test_selected_clips_come_in_order_with_bucket_and_split(tables, with_changes):
    selection = select(tables.run, with_changes()).selection
    rows = selected_clips(tables.run.root, selection, columns=["clip_id", "num_frames"]).to_pylist()
    assert [row["clip_id"] for row in rows] == ["a0", "a1", "c0"]
    assert rows[0] == {"clip_id": "a0", "num_frames": 24, "bucket": "48x80x9@24", "split": "train"}
    assert selected_clips(tables.run.root, selection, "val")["clip_id"].to_pylist() == ["c0"]
    assert selected_clips(tables.run.root).num_rows == 3
    with pytest.raises(ValueError, match="there is no selection 'nope'"):
        selected_clips(tables.run.root, "nope")


def test_a_better_score_changes_the_verdict_and_back(tables, with_changes, clip):
    tables.clips(clip("a2"), motion=0.5)
    tables.videos(attempt=2, a=["a0", "a1", "a2"])
    selection = select(tables.run, with_changes()).selection
    for attempt, value, count in ((2, 5.0, 4), (3, 0.5, 3), (4, 5.0, 4)):
        row = {"score_id": score_id("a2", "motion"), "clip_id": "a2", "scorer": "motion", "value": value}
        tables.add("scores", [ok_row({"attempt": attempt}, **row)])
        assert select(tables.run, with_changes()).num_new == 1
        assert selected_clips(tables.run.root, selection).num_rows == count


def test_clips_that_are_no_longer_cut_leave_the_selection(tables, with_changes, clip):
    selection = select(tables.run, with_changes()).selection
    tables.clips(clip("a7"))
    tables.videos(attempt=2, a=["a0", "a7"])
    result = select(tables.run, with_changes())
    assert (result.num_in, result.num_done, result.num_new, result.rows) == (3, 2, 1, {"selections": 2})
    assert selected_clips(tables.run.root, selection)["clip_id"].to_pylist() == ["a0", "a7", "c0"]
    assert tables.verdicts()["a1"] == (False, ["not_current"], "", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val_fraction": 0.0},
            r"too few validation clips.*: 0.*Raise select\.val_fraction.*pin a file.*source\.yaml",
        ),
        ({"thresholds": {"motion": {"min": 8}}}, r"no clip is left to train on: 0 of 3 kept \(motion_low 3\)"),
    ],
)
def test_a_selection_that_cannot_be_trained_on_is_written_and_says_why(tables, changes, message, with_changes):
    result = select(tables.run, with_changes(**changes))
    assert re.search(message, result.shortage)
    assert result.shortage in result.note
    assert read_table(tables.run.root, "selections").num_rows == 3


def test_a_limit_on_a_score_that_no_clip_has_is_refused_before_anything_is_written(tables, with_changes):
    limits = {"thresholds": {"beauty": {"min": 1}}}
    with pytest.raises(ValueError, match=r"no clip has a score \['beauty'\], which select\.thresholds limits"):
        select(tables.run, with_changes(**limits))
    assert read_table(tables.run.root, "selections").num_rows == 0


def test_no_clips_at_all_says_why(no_tables, with_changes):
    tables = no_tables
    with pytest.raises(ValueError, match="there are no videos in"):
        select(tables.run, with_changes())
    failed = {"status": "failed", "error_type": "truncated", "attempt": 1}
    tables.add("videos", [failed | {"video_id": str(number)} for number in range(3)])
    with pytest.raises(ValueError, match=r"none of the 3 videos in .* gave a clip \(truncated 3\)"):
        select(tables.run, with_changes())


ALL_TRAIN = {"val_fraction": 0.0, "min_val_clips": 0}


def test_the_id_of_a_verdict_is_a_hash_of_clip_settings_scores_and_verdict(tables, with_changes):
    limits = {"min": 1.0, "max": 9.0}
    result = select(tables.run, with_changes())
    verdict = {"keep": True, "drop_reasons": [], "bucket": "48x80x9@24", "split": "train"}
    expected = content_id("a0", params_hash(with_changes()), "1", {"motion": 5.0}, verdict)
    assert expected in read_table(tables.run.root, "selections")["selection_id"].to_pylist()
    assert result.thresholds == {"motion": Bounds(**limits)}


def test_limits_that_no_clip_can_keep_are_known_before_there_are_clips(tables):
    config = SelectConfig(
        preset="pretrain", sets=[{"name": "best", "buckets": ["8x8x1@1"], "thresholds": {"beauty": {}}}]
    )
    computed = {"motion", "text_area"}
    with pytest.raises(ValueError, match=r"\['aesthetic', 'nsfw'\], which the preset pretrain or select\.thresholds"):
        check_limited(tables.run, config, computed)
    check_limited(tables.run, config, computed | {"aesthetic", "nsfw"})
    tables.scores("aesthetic", a0=5.0)  # by an earlier run
    tables.scores("nsfw", a0=0.1)
    check_limited(tables.run, config, computed)


SETS = (
    {"name": "small", "buckets": ["48x80x9@24"]},
    {"name": "large", "buckets": ["96x160x9@24"], "thresholds": {"beauty": {"min": 0.5}}},
    {"name": "best", "buckets": ["96x160x17@24"], "thresholds": {"beauty": {"min": 0.8}}, "max_clips": 3},
)


def test_clips_of_a_set_are_in_every_set_before_it(tables, with_changes):
    tables.many(e=20)
    tables.videos(attempt=2, a=[], c=[])
    tables.videos(e=[f"e{number}" for number in range(20)])
    config = with_changes(sets=SETS, **ALL_TRAIN)
    result = select(tables.run, config)
    sets = result.sets
    small, large, best = (tables.kept(sets[name]) for name in ("small", "large", "best"))
    assert best < large < small
    assert (len(small), len(large), len(best)) == (20, 10, 3)
    assert result.selection == sets["best"] == newest_selection(tables.run.root)
    assert result.note == "3 of 20 clips kept (train 3) in set best; small 20, large 10, best 3"
    assert set(selected_clips(tables.run.root, sets["large"])["bucket"].to_pylist()) == {"96x160x9@24"}
    assert select(tables.run, config).rows == {}
    other = select(tables.run, with_changes(sets=SETS[:2], train_set="small", **ALL_TRAIN))
    assert other.sets == {name: sets[name] for name in ("small", "large")}
    assert (other.num_new, newest_selection(tables.run.root)) == (0, sets["small"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": [*SETS, SETS[1]]}, "the names of sets must differ"),
        ({"sets": SETS, "train_set": "huge"}, r"train_set 'huge' is none of the sets \['small', 'large', 'best'\]"),
        ({"sets": SETS[::-1]}, "set 'large': beauty: min 0.5 is looser than the 0.8 of the set before"),
        ({"sources": {"films": 0}}, "weights must be above 0"),
        ({"sources": {"films": float("inf")}}, "weights must be above 0 and finite"),
        ({"thresholds": {"x": {"min": float("inf")}}}, "should be a finite number"),
        ({"thresholds": {"x": {"max": float("nan")}}}, "should be a finite number"),
        ({"val_fraction": 0.9, "test_fraction": 0.1}, "leave no video for training: their sum must be below 1"),
        ({"thresholds": {"x": {"min_percentile": 90, "max_percentile": 10}}}, "min_percentile 90 is not below"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SelectConfig(**settings)
