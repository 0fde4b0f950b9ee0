"""Selection: every clip gets a verdict with its reasons, and no clip leaks from one split into another. About 2 s."""

import re
from datetime import datetime, timedelta

import pytest
from deltalake import write_deltalake
from pydantic import ValidationError

from pyramid_model.train.buckets import FAMILIES, Bucket, expand_buckets, fitting_bucket, num_frames_at, parse_bucket
from tasks.running.run import Run, lineage, params_hash
from tasks.scoring.scores import score_id
from tasks.selecting.select import check_limited, select
from tasks.selecting.select_config import Bounds, SelectConfig
from tasks.selecting.splits import hashed_split, split_of, splits_of
from tasks.sources.card import SplitPin
from tasks.tables import appending
from tasks.tables.appending import append_block
from tasks.tables.current import selected_clips
from tasks.tables.delta import Lineage, content_id, ok_row, open_table, read_table, table_version
from tasks.tables.manifest import newest_selection, verdicts_of
from tasks.tables.newest import in_order

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

    def scores(self, scorer: str, **values: float) -> None:
        """Scores of a scorer by clip."""
        ids = [(content_id(name, scorer), name, value) for name, value in values.items()]
        self.add("scores", [ok_row({}, score_id=i, clip_id=c, scorer=scorer, value=value) for i, c, value in ids])

    def groups(self, *groups: str, method: str = "phash", attempt: int = 1) -> None:
        """Groups of duplicates, each the names of its clips in the order in which they are kept."""
        rows = [
            {"clip_id": name, "method": method, "group_id": group, "keeper": rank == 0, "rank": rank}
            for group in groups
            for rank, name in enumerate(group.split())
        ]
        ids = [content_id(row["clip_id"], method) for row in rows]
        self.add(
            "duplicates",
            [ok_row({"attempt": attempt}, duplicate_id=i, **row) for i, row in zip(ids, rows, strict=True)],
        )

    def videos(self, attempt: int = 1, source: str = "films", **clip_ids: list[str]) -> None:
        self.add(
            "videos",
            [
                ok_row({"attempt": attempt}, video_id=f"film-{name}", clip_ids=ids, source=source)
                for name, ids in clip_ids.items()
            ],
        )


@pytest.fixture
def tables(tmp_path):
    """Two videos; with half of the videos for validation, a is for training and c for validation."""
    made = Tables(tmp_path / "root")
    made.clips(clip("a0"), clip("a1"), clip("c0"))
    made.videos(a=["a0", "a1"], c=["c0"])
    assert (hashed_split("film-a", 0.5, 0), hashed_split("film-c", 0.5, 0)) == ("train", "val")
    return made


def verdicts(run: Run, selection: str = "") -> dict[str, tuple]:
    rows = read_table(run.root, "selections", latest=False)
    rows = in_order(rows).to_pylist()
    return {row["clip_id"]: (row["keep"], row["drop_reasons"], row["bucket"], row["split"]) for row in rows}


def test_every_clip_gets_a_verdict_and_the_second_run_writes_nothing(tables):
    first = select(tables.run, CONFIG)
    assert (first.num_in, first.num_ok, first.rows) == (3, 3, {"selections": 3})
    assert first.note == "3 of 3 clips kept (train 2, val 1)"
    assert verdicts(tables.run)["a0"] == (True, [], "48x80x9@24", "train")
    again = select(tables.run, CONFIG)
    assert (again.num_in, again.num_done, again.num_new, again.rows) == (3, 3, 0, {})
    assert (again.selection, again.thresholds) == (first.selection, first.thresholds)


def test_the_settings_asked_for_last_count_although_the_clock_was_set_back(tables, monkeypatch):
    kept = select(tables.run, CONFIG).selection

    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(hours=3)

    monkeypatch.setattr(appending, "datetime", Earlier)
    dropped = select(tables.run, SelectConfig(thresholds={"motion": {"min": 250}})).selection
    assert newest_selection(tables.run.root) == dropped != kept
    assert verdicts_of(tables.run.root)["keep"].to_pylist() == [False] * 3
    select(tables.run, CONFIG)
    assert newest_selection(tables.run.root) == kept


def test_a_selection_judges_the_clips_of_its_own_run_although_other_settings_cut_since(tables):
    """Two runs at once with other settings of the clips step: the videos' rows of one are newer, the clips of both."""
    tables.clips(clip("a2", start_frame=12), clip("c1", start_frame=12))
    selections = {}
    for made_with, a, c in (("ours", ["a0", "a1"], ["c0"]), ("theirs", ["a2"], ["c1"])):
        rows = [ok_row({}, video_id="film-a", clip_ids=a), ok_row({}, video_id="film-c", clip_ids=c)]
        append_block(tables.run.root, "videos", rows, "videos", Lineage("run", "clips", "2", made_with, ""))
    for made_with, expected in (("ours", {"a0", "a1", "c0"}), ("theirs", {"a2", "c1"}), ("ours", {"a0", "a1", "c0"})):
        result = select(tables.run, SelectConfig(**CONFIG.model_dump() | {"clips": made_with}))
        assert result.num_in == len(expected)
        selections[made_with] = result.selection
        chosen = {name: selected_clips(tables.run.root, one)["clip_id"] for name, one in selections.items()}
        assert set(chosen[made_with].to_pylist()) == expected
    assert set(chosen["theirs"].to_pylist()) == {"a2", "c1"}


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
    first = select(tables.run, CONFIG).selection
    loose = SelectConfig(**CONFIG.model_dump() | {"thresholds": {}})
    second = select(tables.run, loose).selection
    assert first != second
    for selection in (first, second):
        assert selected_clips(tables.run.root, selection).num_rows == 3


def test_going_back_to_earlier_limits_makes_their_selection_the_newest_again(tables):
    tables.clips(clip("a2"), motion=0.5)
    tables.videos(attempt=2, a=["a0", "a1", "a2"])
    loose = SelectConfig(**CONFIG.model_dump() | {"thresholds": {}})
    for config, num_clips in ((CONFIG, 3), (loose, 4), (CONFIG, 3), (loose, 4), (CONFIG, 3)):
        last = select(tables.run, config)
        assert selected_clips(tables.run.root).num_rows == num_clips
        assert newest_selection(tables.run.root) == last.selection
        assert verdicts_of(tables.run.root).num_rows == 4
    assert (last.num_new, last.num_done, last.rows) == (0, 4, {"selections": 1})
    assert select(tables.run, CONFIG).rows == {}


def test_a_pinned_version_does_not_see_a_later_selection(tables):
    select(tables.run, CONFIG)
    versions = {name: table_version(tables.run.root, name) for name in ("selections", "clips")}
    tables.clips(clip("a7"))
    tables.videos(attempt=2, a=["a0", "a1", "a7"])
    select(tables.run, SelectConfig(**CONFIG.model_dump() | {"thresholds": {}}))
    assert selected_clips(tables.run.root).num_rows == 4
    assert selected_clips(tables.run.root, versions=versions)["clip_id"].to_pylist() == ["a0", "a1", "c0"]


def test_selected_clips_come_in_order_with_bucket_and_split(tables):
    selection = select(tables.run, CONFIG).selection
    rows = selected_clips(tables.run.root, selection, columns=["clip_id", "num_frames"]).to_pylist()
    assert [row["clip_id"] for row in rows] == ["a0", "a1", "c0"]
    assert rows[0] == {"clip_id": "a0", "num_frames": 24, "bucket": "48x80x9@24", "split": "train"}
    assert selected_clips(tables.run.root, selection, "val")["clip_id"].to_pylist() == ["c0"]
    assert selected_clips(tables.run.root).num_rows == 3
    with pytest.raises(ValueError, match="there is no selection 'nope'"):
        selected_clips(tables.run.root, "nope")


def test_a_better_score_changes_the_verdict_and_back(tables):
    tables.clips(clip("a2"), motion=0.5)
    tables.videos(attempt=2, a=["a0", "a1", "a2"])
    selection = select(tables.run, CONFIG).selection
    for attempt, value, count in ((2, 5.0, 4), (3, 0.5, 3), (4, 5.0, 4)):
        row = {"score_id": score_id("a2", "motion"), "clip_id": "a2", "scorer": "motion", "value": value}
        tables.add("scores", [ok_row({"attempt": attempt}, **row)])
        assert select(tables.run, CONFIG).num_new == 1
        assert selected_clips(tables.run.root, selection).num_rows == count


def test_clips_that_are_no_longer_cut_leave_the_selection(tables):
    selection = select(tables.run, CONFIG).selection
    tables.clips(clip("a7"))
    tables.videos(attempt=2, a=["a0", "a7"])
    result = select(tables.run, CONFIG)
    assert (result.num_in, result.num_done, result.num_new, result.rows) == (3, 2, 1, {"selections": 2})
    assert selected_clips(tables.run.root, selection)["clip_id"].to_pylist() == ["a0", "a7", "c0"]
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
    assert re.search(message, result.shortage)
    assert result.shortage in result.note
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
    selection = select(tables.run, CONFIG).selection
    split = {name: verdict[3] for name, verdict in verdicts(tables.run).items()}
    assert split == {"a0": "train", "a1": "val", "c0": "train"}
    card.write_text(f"splits: [{pins.format(0.5)}]")
    select(tables.run, CONFIG)
    assert verdicts(tables.run)["a0"] == (False, ["straddles_splits"], "48x80x9@24", "")
    assert selected_clips(tables.run.root, selection, "val")["clip_id"].to_pylist() == ["a1"]
    card.unlink()
    with pytest.raises(ValueError, match=r"source\.yaml is missing.*put it back"):
        select(tables.run, CONFIG)


def test_pins_hold_for_files_of_a_table_that_does_not_name_the_card_yet(tables, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "source.yaml").write_text("splits: [{file: more/a.mp4, split: test}]\n")
    rows = [
        {"source_id": "a", "video_id": "film-a", "path": "more/a.mp4", "uri": f"{folder}/more/a.mp4"},
        {"source_id": "c", "video_id": "film-c", "path": "c.mp4", "uri": str(tmp_path / "c.mp4")},  # has no card
    ]
    tables.add("sources", [ok_row({}, **row) for row in rows])
    delta = open_table(tables.run.root, "sources")
    older = delta.to_pyarrow_table().drop_columns(["card"])
    write_deltalake(delta.table_uri, older, mode="overwrite", schema_mode="overwrite")
    assert "card" not in open_table(tables.run.root, "sources").to_pyarrow_table().column_names
    select(tables.run, CONFIG)
    assert {name: row[3] for name, row in verdicts(tables.run).items()} == {"a0": "test", "a1": "test", "c0": "val"}


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


def with_changes(**changes) -> SelectConfig:
    return SelectConfig(**CONFIG.model_dump() | changes)


def kept(run: Run, selection: str = "") -> set[str]:
    return set(selected_clips(run.root, selection)["clip_id"].to_pylist())


def many(tables: Tables, **counts: int) -> None:
    """Videos of so many clips each, all for training, with a score `beauty` that rises from 0 to 1 in each video."""
    for name, count in counts.items():
        clips = [clip(f"{name}{number}") for number in range(count)]
        tables.clips(*clips)
        tables.scores("beauty", **{row["clip_id"]: number / count for number, row in enumerate(clips)})


ALL_TRAIN = {"val_fraction": 0.0, "min_val_clips": 0}


def test_the_id_of_a_verdict_is_a_hash_of_clip_settings_scores_and_verdict(tables):
    limits = {"min": 1.0, "max": 9.0}
    result = select(tables.run, CONFIG)
    verdict = {"keep": True, "drop_reasons": [], "bucket": "48x80x9@24", "split": "train"}
    expected = content_id("a0", params_hash(CONFIG), "1", {"motion": 5.0}, verdict)
    assert expected in read_table(tables.run.root, "selections")["selection_id"].to_pylist()
    assert result.thresholds == {"motion": Bounds(**limits)}


def test_of_duplicates_the_best_that_other_rules_keep_stays(tables):
    tables.clips(clip("a2"), motion=0.5)
    tables.clips(clip("d0"), clip("d1"))
    tables.videos(attempt=2, a=["a0", "a1", "a2"])
    tables.videos(d=["d0", "d1"])
    tables.groups("a2 a0 d0", "a1 d1")
    select(tables.run, CONFIG)
    reasons = {name: verdict[1] for name, verdict in verdicts(tables.run).items() if verdict[1]}
    assert reasons == {"a2": ["motion_low", "duplicate_phash"], "d0": ["duplicate_phash"], "d1": ["duplicate_phash"]}
    select(tables.run, with_changes(drop_duplicates=()))
    assert kept(tables.run) == {"a0", "a1", "c0", "d0", "d1"}


def test_methods_are_applied_one_after_the_other_so_that_no_group_is_lost(tables):
    tables.groups("a0 a1")
    tables.groups("a1 c0", method="semantic")
    select(tables.run, CONFIG)
    assert kept(tables.run) == {"a0", "c0"}  # a1 is gone already, so c0 repeats nothing


def test_videos_with_a_copy_in_common_share_a_split(tables):
    assert kept(tables.run, select(tables.run, CONFIG).selection) == {"a0", "a1", "c0"}
    tables.groups("a0 c0")
    select(tables.run, with_changes(drop_duplicates=()))
    assert {verdict[3] for verdict in verdicts(tables.run).values()} == {hashed_split("film-a", 0.5, 0)}


def test_what_is_merely_alike_does_not_link_the_splits_of_videos(tables):
    tables.groups("a0 c0", method="semantic")
    select(tables.run, with_changes(drop_duplicates=()))
    assert {name: verdict[3] for name, verdict in verdicts(tables.run).items()}["c0"] == "val"


def pinned(split: str, start_s: float | None = None, end_s: float | None = None) -> SplitPin:
    return SplitPin(file="f", split=split, start_s=start_s, end_s=end_s)


@pytest.mark.parametrize(
    ("groups", "pins", "expected"),
    [
        ([], {}, ["train", "train", "val", "train"]),  # d is drawn for training as a is
        ([[0, 3]], {"film-a": [pinned("val")]}, ["val", "val", "val", "val"]),  # the copy follows its original
        ([[0, 3]], {"film-a": [pinned("val", 0, 1)]}, ["val", "train", "val", "val"]),
        ([[1, 3]], {"film-a": [pinned("val", 0, 1)]}, ["val", "train", "val", "train"]),
        (
            [[0, 3]],
            {"film-a": [pinned("val")], "film-d": [pinned("train")]},
            ["pins_conflict", "val", "val", "pins_conflict"],
        ),
        ([[0, 2], [2, 3]], {"film-d": [pinned("test")]}, ["test", "test", "test", "test"]),
        ([[0, 3]], {"film-a": [pinned("val", 0.5)]}, ["", "val", "val", "pins_conflict"]),
    ],
)
def test_pins_reach_the_copies_of_a_clip(groups, pins, expected):
    assert hashed_split("film-d", 0.5, 0) == "train"
    clips = [clip(name) for name in ("a0", "a1", "c0", "d0")]
    assert splits_of(clips, groups, pins, 0.5, 0.0) == expected


def test_the_draw_of_splits_does_not_depend_on_the_order_of_clips_or_groups():
    clips = [clip(f"{letter}0") for letter in "abcdefghij"]
    groups = [[0, 4], [4, 7], [1, 2]]
    straight = splits_of(clips, groups, {}, 0.5, 0.0)
    backwards = splits_of(clips[::-1], [[9 - place for place in group] for group in groups[::-1]], {}, 0.5, 0.0)
    assert backwards[::-1] == straight
    assert straight[0] == straight[4] == straight[7]
    assert straight[1] == straight[2]


def test_percentiles_are_taken_of_all_clips_and_their_values_are_told(tables):
    many(tables, e=101)
    tables.videos(e=[f"e{number}" for number in range(101)])
    for name in ("a0", "a1", "c0"):
        tables.scores("beauty", **{name: 0.5})
    limits = {"beauty": {"min_percentile": 10, "max_percentile": 90, "max": 0.6}}
    result = select(tables.run, with_changes(thresholds=limits, **ALL_TRAIN))
    told = result.thresholds["beauty"]
    assert (told.min, told.max) == (pytest.approx(0.1, abs=0.02), 0.6)  # of two upper bounds the stricter one
    assert f"beauty from {told.min:.4g} to 0.6" in result.note
    values = [int(name[1:]) / 101 for name in kept(tables.run) if name[0] == "e"]
    assert min(values) >= told.min
    assert max(values) <= 0.6


def test_figures_of_the_clip_may_have_limits_without_any_scorer(tables):
    tables.clips(clip("a2", end_s=9.0), clip("a3", height=54, width=200))
    tables.videos(attempt=2, a=["a0", "a1", "a2", "a3"])
    limits = {"duration_s": {"max": 4}, "aspect": {"max": 3}, "fps": {"min": 16}}
    select(tables.run, with_changes(thresholds=limits))
    reasons = {name: verdict[1] for name, verdict in verdicts(tables.run).items() if verdict[1]}
    assert reasons == {"a2": ["duration_s_high"], "a3": ["aspect_high"]}


def test_a_preset_is_a_set_of_limits_of_which_each_may_be_changed_or_lifted(tables):
    config = SelectConfig(preset="pretrain", thresholds={"aesthetic": {"min": 5}, "text_area": {}})
    assert config.thresholds["aesthetic"].min == 5
    assert set(config.rules().thresholds) == {"duration_s", "motion", "aesthetic", "nsfw"}
    assert SelectConfig.model_validate(config.model_dump(mode="json")) == config
    assert SelectConfig(preset="finetune").thresholds["duration_s"].min == 4
    with pytest.raises(ValueError, match=r"no clip has a score \['aesthetic', 'nsfw'\].*remove the limit with \{\}"):
        select(tables.run, config)


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


def test_clips_of_a_set_are_in_every_set_before_it(tables):
    many(tables, e=20)
    tables.videos(attempt=2, a=[], c=[])
    tables.videos(e=[f"e{number}" for number in range(20)])
    config = with_changes(sets=SETS, **ALL_TRAIN)
    result = select(tables.run, config)
    sets = result.sets
    small, large, best = (kept(tables.run, sets[name]) for name in ("small", "large", "best"))
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


def test_no_video_gives_more_than_its_quota_and_new_clips_change_few_choices(tables):
    many(tables, e=40, g=3)
    tables.videos(attempt=2, a=[], c=[])
    tables.videos(e=[f"e{number}" for number in range(30)], g=["g0", "g1", "g2"])
    config = with_changes(max_per_video=10, **ALL_TRAIN)
    select(tables.run, config)
    before = kept(tables.run)
    assert len(before) == 13
    assert {"g0", "g1", "g2"} < before
    tables.videos(attempt=2, e=[f"e{number}" for number in range(40)])
    select(tables.run, config)
    after = kept(tables.run)
    assert len(after) == 13
    assert len(before - after) == len(after - before)
    assert len(after - before) == sum(int(name[1:]) >= 30 for name in after if name[0] == "e")


def test_sources_are_mixed_by_their_weights_as_far_as_the_scarcest_goes(tables):
    many(tables, e=30, g=8, h=5)
    tables.videos(attempt=2, a=[], c=[])
    tables.videos(source="films", e=[f"e{number}" for number in range(30)])
    tables.videos(source="phones", g=[f"g{number}" for number in range(8)])
    tables.videos(source="cams", h=[f"h{number}" for number in range(5)])
    for max_clips, expected in ((None, (24, 8)), (12, (9, 3))):
        select(tables.run, with_changes(sources={"films": 3, "phones": 1}, max_clips=max_clips, **ALL_TRAIN))
        chosen = kept(tables.run)
        assert tuple(sum(name[0] == letter for name in chosen) for letter in "eg") == expected
        assert not any(name[0] == "h" for name in chosen)
    with pytest.raises(ValueError, match=r"no clip comes from a source \['film'\].*\['cams', 'films', 'phones'\]"):
        select(tables.run, with_changes(sources={"film": 1}))


def test_quotas_leave_validation_clips_alone(tables):
    select(tables.run, with_changes(max_clips=1))
    assert len(kept(tables.run)) == 2
    assert "c0" in kept(tables.run)


def test_families_of_buckets_have_one_area_in_several_aspects():
    for name, sizes in FAMILIES.items():
        areas = [height * width for height, width in sizes]
        assert max(areas) < 1.1 * min(areas)
        assert all(side % 64 == 0 for size in sizes for side in size)
        assert len(expand_buckets([f"{name}x121@24", f"{name}x57@24"])) == 2 * len(sizes)
    assert expand_buckets(["384px121@24"])[:2] == ("384x640x121@24", "640x384x121@24")
    assert SelectConfig(buckets=("384px9@24",)).buckets[0] == "384x640x9@24"
    with pytest.raises(ValueError, match=r"'384px120@24' has 120 frames: latents need 1 \+ 8k, e\.g\. 121"):
        expand_buckets(["384px120@24"])
    with pytest.raises(ValueError, match="no family of buckets is called '100p'"):
        expand_buckets(["100px9@24"])


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
    with pytest.raises(ValueError, match=r"is not a bucket: write <height>x<width>x<frames>@<fps>"):
        parse_bucket(text)


def test_limits_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="min 5 is above max 2: no clip could pass"):
        SelectConfig(thresholds={"motion": {"min": 5, "max": 2}})
