"""Selection: every clip gets a verdict with its reasons, and no clip leaks from one split into another. About 2 s."""

import re

import pytest
from pydantic import ValidationError

from tasks.buckets import Bucket, fitting_bucket, num_frames_at, parse_bucket
from tasks.manifest import newest_selection, verdicts_of
from tasks.scores import score_id
from tasks.select import SelectConfig, select, selected_clips
from tasks.source_card import SplitPin
from tasks.splits import hashed_split, split_of
from tasks.step import Run, lineage
from tasks.tables import append_block, content_id, ok_row, read_table, table_version

CONFIG = SelectConfig(buckets=("48x80x9@24",), thresholds={"motion": {"min": 1, "max": 9}}, val_fraction=0.5)


def clip(name: str, **changes) -> dict:
    row = {"clip_id": name, "video_id": f"film-{name[0]}", "num_frames": 24, "fps_num": 24, "fps_den": 1}
    row |= {"height": 96, "width": 160, "start_frame": int(name[1:]) * 24}
    row |= {"start_s": float(name[1:]), "end_s": float(name[1:]) + 1}
    return row | changes


class Tables:
    """Writes the rows that the steps before would have written."""

    def __init__(self, root):
        self.run = Run(root=str(root))
        self.count = 0

    def add(self, table: str, rows: list[dict]) -> None:
        self.count += 1
        append_block(self.run.root, table, rows, str(self.count), lineage(self.run, "test", "1", CONFIG))

    def clips(self, *clips: dict, motion: float = 5.0) -> None:
        """Clips with a motion score each, as the current ones of their videos."""
        self.add("clips", [ok_row({}, **row) for row in clips])
        ids = [(row["clip_id"], score_id(row["clip_id"], "motion")) for row in clips]
        self.add("scores", [ok_row({}, score_id=i, clip_id=c, scorer="motion", value=motion) for c, i in ids])

    def videos(self, attempt: int = 1, **clip_ids: list[str]) -> None:
        rows = [ok_row({"attempt": attempt}, video_id=f"film-{name}", clip_ids=ids) for name, ids in clip_ids.items()]
        self.add("videos", rows)


@pytest.fixture
def tables(tmp_path):
    """Two videos; with half of the videos for validation, a is for training and c for validation."""
    made = Tables(tmp_path / "root")
    made.clips(clip("a0"), clip("a1"), clip("c0"))
    made.videos(a=["a0", "a1"], c=["c0"])
    assert (hashed_split("film-a", 0.5, 0), hashed_split("film-c", 0.5, 0)) == ("train", "val")
    return made


def verdicts(run: Run, selection: str = "") -> dict[str, tuple]:
    rows = read_table(run.root, "selections", latest=False).sort_by("created_at").to_pylist()
    return {row["clip_id"]: (row["keep"], row["drop_reasons"], row["bucket"], row["split"]) for row in rows}


def test_every_clip_gets_a_verdict_and_the_second_run_writes_nothing(tables):
    first = select(tables.run, CONFIG)
    assert (first.num_in, first.num_ok, first.rows) == (3, 3, {"selections": 3})
    assert first.note == "3 of 3 clips kept (train 2, val 1)"
    assert verdicts(tables.run)["a0"] == (True, [], "48x80x9@24", "train")
    again = select(tables.run, CONFIG)
    assert (again.num_in, again.num_done, again.num_new, again.rows) == (3, 3, 0, {})
    assert again.outputs == first.outputs


def test_each_rule_that_a_clip_breaks_is_named(tables):
    tables.clips(clip("a2"), motion=0.5)
    tables.clips(clip("a3"), motion=20)
    tables.clips(clip("a4", height=32, width=54))
    tables.clips(clip("a5", num_frames=6))
    tables.add("clips", [ok_row({}, **clip("a6"))])
    tables.videos(attempt=2, a=[f"a{n}" for n in range(7)])
    result = select(tables.run, SelectConfig(**CONFIG.model_dump() | {"min_frames": 8}))
    assert {name: reasons for name, (keep, reasons, *_) in verdicts(tables.run).items() if not keep} == {
        "a2": ["motion_low"],
        "a3": ["motion_high"],
        "a4": ["too_small"],
        "a5": ["too_few_frames", "too_short"],
        "a6": ["motion_missing"],
    }
    assert result.errors["too_small"] == 1
    assert result.num_in == 8


def test_another_threshold_is_another_selection_beside_the_first(tables):
    first = select(tables.run, CONFIG).outputs["selection"]
    loose = SelectConfig(**CONFIG.model_dump() | {"thresholds": {}})
    second = select(tables.run, loose).outputs["selection"]
    assert first != second
    for selection in (first, second):
        assert selected_clips(tables.run, selection).num_rows == 3


def test_going_back_to_earlier_limits_makes_their_selection_the_newest_again(tables):
    tables.clips(clip("a2"), motion=0.5)
    tables.videos(attempt=2, a=["a0", "a1", "a2"])
    loose = SelectConfig(**CONFIG.model_dump() | {"thresholds": {}})
    for config, num_clips in ((CONFIG, 3), (loose, 4), (CONFIG, 3), (loose, 4), (CONFIG, 3)):
        last = select(tables.run, config)
        assert selected_clips(tables.run).num_rows == num_clips
        assert newest_selection(tables.run.root) == last.outputs["selection"]
        assert verdicts_of(tables.run.root).num_rows == 4
    assert (last.num_new, last.num_done, last.rows) == (0, 4, {"selections": 1})
    assert select(tables.run, CONFIG).rows == {}


def test_a_pinned_version_does_not_see_a_later_selection(tables):
    select(tables.run, CONFIG)
    versions = {name: table_version(tables.run.root, name) for name in ("selections", "clips")}
    tables.clips(clip("a7"))
    tables.videos(attempt=2, a=["a0", "a1", "a7"])
    select(tables.run, SelectConfig(**CONFIG.model_dump() | {"thresholds": {}}))
    assert selected_clips(tables.run).num_rows == 4
    assert selected_clips(tables.run, versions=versions)["clip_id"].to_pylist() == ["a0", "a1", "c0"]


def test_selected_clips_come_in_order_with_bucket_and_split(tables):
    selection = select(tables.run, CONFIG).outputs["selection"]
    rows = selected_clips(tables.run, selection, columns=["clip_id", "num_frames"]).to_pylist()
    assert [row["clip_id"] for row in rows] == ["a0", "a1", "c0"]
    assert rows[0] == {"clip_id": "a0", "num_frames": 24, "bucket": "48x80x9@24", "split": "train"}
    assert selected_clips(tables.run, selection, "val")["clip_id"].to_pylist() == ["c0"]
    assert selected_clips(tables.run).num_rows == 3
    with pytest.raises(ValueError, match="there is no selection 'nope'"):
        selected_clips(tables.run, "nope")


def test_a_better_score_changes_the_verdict_and_back(tables):
    tables.clips(clip("a2"), motion=0.5)
    tables.videos(attempt=2, a=["a0", "a1", "a2"])
    selection = select(tables.run, CONFIG).outputs["selection"]
    for attempt, value, count in ((2, 5.0, 4), (3, 0.5, 3), (4, 5.0, 4)):
        row = {"score_id": score_id("a2", "motion"), "clip_id": "a2", "scorer": "motion", "value": value}
        tables.add("scores", [ok_row({"attempt": attempt}, **row)])
        assert select(tables.run, CONFIG).num_new == 1
        assert selected_clips(tables.run, selection).num_rows == count


def test_clips_that_are_no_longer_cut_leave_the_selection(tables):
    selection = select(tables.run, CONFIG).outputs["selection"]
    tables.clips(clip("a7"))
    tables.videos(attempt=2, a=["a0", "a7"])
    result = select(tables.run, CONFIG)
    assert (result.num_in, result.num_done, result.num_new, result.rows) == (3, 2, 1, {"selections": 2})
    assert selected_clips(tables.run, selection)["clip_id"].to_pylist() == ["a0", "a7", "c0"]
    assert verdicts(tables.run)["a1"] == (False, ["not_current"], "", "")


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
def test_a_selection_that_cannot_be_trained_on_is_written_and_says_why(tables, changes, message):
    result = select(tables.run, SelectConfig(**CONFIG.model_dump() | changes))
    assert re.search(message, result.outputs["shortage"])
    assert result.outputs["shortage"] in result.note
    assert read_table(tables.run.root, "selections").num_rows == 3


def test_a_limit_on_a_score_that_no_clip_has_is_refused_before_anything_is_written(tables):
    limits = {"thresholds": {"beauty": {"min": 1}}}
    with pytest.raises(ValueError, match=r"no clip has a score \['beauty'\], which select\.thresholds limits"):
        select(tables.run, SelectConfig(**CONFIG.model_dump() | limits))
    assert read_table(tables.run.root, "selections").num_rows == 0


def test_no_clips_at_all_says_why(tmp_path):
    tables = Tables(tmp_path / "root")
    with pytest.raises(ValueError, match="there are no videos in"):
        select(tables.run, CONFIG)
    failed = {"status": "failed", "error_type": "truncated", "attempt": 1}
    tables.add("videos", [failed | {"video_id": str(number)} for number in range(3)])
    with pytest.raises(ValueError, match=r"none of the 3 videos in .* gave a clip \(truncated 3\)"):
        select(tables.run, CONFIG)


def test_pins_win_over_the_hash_and_move_clips_when_they_change(tables, tmp_path):
    card = tmp_path / "source.yaml"
    for name in "ac":
        row = {"source_id": name, "video_id": f"film-{name}", "path": f"{name}.mp4", "card": str(card)}
        tables.add("sources", [ok_row({}, **row)])
    pins = "{{file: a.mp4, split: val, start_s: {:g}}}, {{file: c.mp4, split: train}}"
    card.write_text(f"splits: [{pins.format(1)}]")
    selection = select(tables.run, CONFIG).outputs["selection"]
    split = {name: verdict[3] for name, verdict in verdicts(tables.run).items()}
    assert split == {"a0": "train", "a1": "val", "c0": "train"}
    card.write_text(f"splits: [{pins.format(0.5)}]")
    select(tables.run, CONFIG)
    assert verdicts(tables.run)["a0"] == (False, ["straddles_splits"], "48x80x9@24", "")
    assert selected_clips(tables.run, selection, "val")["clip_id"].to_pylist() == ["a1"]
    card.unlink()
    with pytest.raises(ValueError, match=r"source\.yaml is gone.*Put it back"):
        select(tables.run, CONFIG)


@pytest.mark.parametrize(
    ("pins", "expected"),
    [
        ([("val", None, None)], "val"),
        ([("val", 0.0, 3.0)], "val"),
        ([("val", 2.01, 2.99)], "val"),  # half a frame over either edge is rounding
        ([("val", 2.5, None)], ""),
        ([("val", 0.0, 2.0), ("train", 2.0, None)], "train"),
        ([("val", 0.0, 2.5), ("test", 2.5, None)], ""),
        ([("train", 0.0, 2.5), ("train", 2.5, 9.0)], "train"),
        ([("val", 7.0, 9.0)], "train"),
    ],
)
def test_a_clip_belongs_to_the_span_it_lies_in(pins, expected):
    made = [SplitPin(file="f", split=split, start_s=start, end_s=end) for split, start, end in pins]
    assert split_of(clip("a2"), made, 0.9, 0.0) == expected


def test_hashed_splits_have_their_share_and_follow_the_video():
    splits = [hashed_split(content_id(number), 0.1, 0.2) for number in range(4000)]
    assert splits.count("val") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert all(hashed_split("v", 0.3, 0.3) == hashed_split("v", 0.3, 0.3) for _ in range(3))


BUCKETS = [Bucket(48, 80, 9, 24), Bucket(96, 160, 9, 24), Bucket(96, 160, 17, 24), Bucket(160, 96, 9, 24)]


@pytest.mark.parametrize(
    ("size", "frames", "fps", "expected"),
    [
        ((480, 854), 24, 24, "96x160x17@24"),  # the nearest aspect, then the largest, then the longest
        ((480, 854), 16, 24, "96x160x9@24"),
        ((854, 480), 24, 24, "160x96x9@24"),
        ((60, 100), 24, 24, "48x80x9@24"),
        ((480, 854), 8, 24, "too_short"),
        ((40, 64), 24, 24, "too_small"),
        ((480, 854), 24, 60, "96x160x9@24"),  # 24 frames at 60 a second give 10 at 24
        ((480, 854), 18, 60, "too_short"),
    ],
)
def test_a_clip_goes_into_the_best_bucket_that_it_fills(size, frames, fps, expected):
    bucket, why = fitting_bucket(*size, frames, fps, BUCKETS, max_upscale=1.0)
    assert (str(bucket) if bucket else why) == expected


@pytest.mark.parametrize(("frames", "clip_fps", "fps", "expected"), [(30, 30, 15, 15), (30, 30, 30, 30), (1, 24, 9, 1)])
def test_resampling_counts_as_reading_does(frames, clip_fps, fps, expected):
    assert num_frames_at(frames, clip_fps, fps) == expected


@pytest.mark.parametrize("text", ["48x80x9", "48x80@24", "axbxc@d", "0x80x9@24", "48x80x9@"])
def test_what_is_no_bucket_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match=r"is no bucket: write <height>x<width>x<frames>@<fps>"):
        parse_bucket(text)


def test_limits_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="min 5 is above max 2: no clip could pass"):
        SelectConfig(thresholds={"motion": {"min": 5, "max": 2}})
