"""Splits: pins count before hashes, and copies of a clip share its split."""

import pytest
from deltalake import write_deltalake

from tasks.selecting.select import select
from tasks.selecting.splits import hashed_split, split_of, splits_of
from tasks.sources.card import SplitPin
from tasks.tables.content_ids import content_id
from tasks.tables.current import selected_clips
from tasks.tables.delta import open_table
from tasks.tables.rows import ok_row


def test_pins_win_over_the_hash_and_move_clips_when_they_change(tables, tmp_path, with_changes):
    card = tmp_path / "source.yaml"
    for name in "ac":
        row = {"source_id": name, "video_id": f"film-{name}", "path": f"{name}.mp4", "card": str(card)}
        tables.add("sources", [ok_row({}, **row)])
    pins = "{{file: a.mp4, split: val, start_s: {:g}}}, {{file: c.mp4, split: train}}"
    card.write_text(f"splits: [{pins.format(1)}]")
    selection = select(tables.run, with_changes()).selection
    split = {name: verdict[3] for name, verdict in tables.verdicts().items()}
    assert split == {"a0": "train", "a1": "val", "c0": "train"}
    card.write_text(f"splits: [{pins.format(0.5)}]")
    select(tables.run, with_changes())
    assert tables.verdicts()["a0"] == (False, ["straddles_splits"], "48x80x9@24", "")
    assert selected_clips(tables.run.root, selection, "val")["clip_id"].to_pylist() == ["a1"]
    card.unlink()
    with pytest.raises(ValueError, match=r"source\.yaml is missing.*put it back"):
        select(tables.run, with_changes())


def test_pins_hold_for_files_of_a_table_that_does_not_name_the_card_yet(tables, tmp_path, with_changes):
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
    select(tables.run, with_changes())
    assert {name: row[3] for name, row in tables.verdicts().items()} == {"a0": "test", "a1": "test", "c0": "val"}


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
def test_a_clip_belongs_to_the_span_it_lies_in(pins, expected, clip):
    made = [SplitPin(file="f", split=split, start_s=start, end_s=end) for split, start, end in pins]
    assert split_of(clip("a2"), made, 0.9, 0.0) == expected


def test_hashed_splits_have_their_share_and_follow_the_video():
    splits = [hashed_split(content_id(number), 0.1, 0.2) for number in range(4000)]
    assert splits.count("val") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert all(hashed_split("v", 0.3, 0.3) == hashed_split("v", 0.3, 0.3) for _ in range(3))


def test_videos_with_a_copy_in_common_share_a_split(tables, with_changes):
    assert tables.kept(select(tables.run, with_changes()).selection) == {"a0", "a1", "c0"}
    tables.groups("a0 c0")
    select(tables.run, with_changes(drop_duplicates=()))
    assert {verdict[3] for verdict in tables.verdicts().values()} == {hashed_split("film-a", 0.5, 0)}


def test_what_is_merely_alike_does_not_link_the_splits_of_videos(tables, with_changes):
    tables.groups("a0 c0", method="semantic")
    select(tables.run, with_changes(drop_duplicates=()))
    assert {name: verdict[3] for name, verdict in tables.verdicts().items()}["c0"] == "val"


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
def test_pins_reach_the_copies_of_a_clip(groups, pins, expected, clip):
    assert hashed_split("film-d", 0.5, 0) == "train"
    clips = [clip(name) for name in ("a0", "a1", "c0", "d0")]
    assert splits_of(clips, groups, pins, 0.5, 0.0) == expected


def test_the_draw_of_splits_does_not_depend_on_the_order_of_clips_or_groups(clip):
    clips = [clip(f"{letter}0") for letter in "abcdefghij"]
    groups = [[0, 4], [4, 7], [1, 2]]
    straight = splits_of(clips, groups, {}, 0.5, 0.0)
    backwards = splits_of(clips[::-1], [[9 - place for place in group] for group in groups[::-1]], {}, 0.5, 0.0)
    assert backwards[::-1] == straight
    assert straight[0] == straight[4] == straight[7]
    assert straight[1] == straight[2]
