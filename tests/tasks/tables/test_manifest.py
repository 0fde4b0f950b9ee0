"""Manifest: filters mean what they say, and the joined view loses no clip."""

import pytest

from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.delta import TableError, read_table
from tasks.tables.manifest import (
    CLIPS_WITH_SCORES,
    WRITERS,
    check_written,
    clips_with_scores,
    locate,
    overview,
    parse_filter,
    select_rows,
)
from tasks.tables.rows import Lineage, bad_row, ok_row
from tasks.tables.schemas import SCHEMAS


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("num_frames>=20", [2, 3]),
        ("num_frames != 20", [1, 3]),
        ("num_frames < 20", [1]),
        ("status = 'ok'", [1, 2, 3]),
        ("uri~CLIPS", [1, 2, 3]),
        ("cut_method=null", [1, 2, 3]),
        ("cut_method!=null", []),
        (f"clip_id={content_id('clip', 3)}", [3]),
    ],
)
def test_a_filter_keeps_the_rows_it_describes(small, text, numbers):
    rows = select_rows(small.root, "clips", [parse_filter(text)], ["num_frames"])
    assert rows["num_frames"].to_pylist() == [10 * number for number in numbers]


def test_filters_are_joined_by_and_and_look_into_lists(small):
    rows = select_rows(small.root, "selections", [parse_filter("drop_reasons~blur"), parse_filter("keep=false")])
    assert rows["clip_id"].to_pylist() == [small.clip_id(3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_frames", "not COLUMN OPERATOR VALUE"),
        ("frames>3", "no column 'frames' to filter on: choose from clip_id"),
        ("num_frames>many", "'many' is not a int64"),
        ("__import__('os')=1", "not COLUMN OPERATOR VALUE"),
    ],
)
def test_a_filter_that_means_nothing_says_why(small, text, message):
    with pytest.raises(TableError, match=message):
        select_rows(small.root, "clips", [parse_filter(text)])


def test_a_table_is_found_by_root_and_name_or_by_its_own_uri(small):
    assert locate(small.root, "clips") == (small.root, "clips")
    assert locate(f"{small.root}/tables/clips/") == (small.root, "clips")
    assert locate(small.root) == (small.root, None)
    with pytest.raises(TableError, match="no tables under"):
        locate(small.root + "/elsewhere")
    with pytest.raises(TableError, match="there is no table 'clip'"):
        locate(small.root, "clip")
    with pytest.raises(TableError, match="is table 'clips', and the argument is 'scores'"):
        locate(f"{small.root}/tables/clips", "scores")


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_table_that_has_not_been_written_names_the_command_that_writes_it(tmp_path, table):
    with pytest.raises(TableError, match=f"yet: pyramid {WRITERS[table]} writes it"):
        check_written(str(tmp_path), table)


def test_binary_values_are_shown_as_their_sizes(small):
    rows = select_rows(small.root, "latents", columns=["latent", "shape"])
    assert rows.to_pylist() == [{"latent": 16, "shape": [1, 2, 2, 2]}]


def test_the_joined_view_has_a_row_a_clip_and_a_column_a_scorer(small):
    rows = clips_with_scores(small.root).to_pylist()
    assert [(row["clip_id"], row["motion"], row["blur"]) for row in rows] == [
        (small.clip_id(1), 0.5, 100.0),
        (small.clip_id(2), 2.0, 20.0),
        (small.clip_id(3), 9.0, 300.0),
    ]
    assert [row["caption"] for row in rows] == [None, "a hill, at dusk", None]
    assert [row["drop_reasons"] for row in rows] == [["motion"], [], ["motion", "blur"]]
    assert select_rows(small.root, CLIPS_WITH_SCORES, [parse_filter("motion>1")], ["caption"]).num_rows == 2


def test_the_joined_view_shows_the_newest_recipe_only(small):
    newer = Lineage("run", "select", "1", "another recipe", "code")
    small.append("selections", [small.selection(1, []) | {"selection_id": content_id("newer")}], newer)
    assert [row["keep"] for row in clips_with_scores(small.root).to_pylist()] == [True, None, None]


def test_the_joined_view_of_clips_without_scores_is_the_clips(tmp_path):
    row = ok_row({}, clip_id=content_id("clip", 1), video_id=content_id("video"))
    append_block(str(tmp_path), "clips", [row], "block", Lineage("run", "clips", "1", "recipe", "code"))
    [row] = clips_with_scores(str(tmp_path)).to_pylist()
    assert (row["clip_id"], row["keep"], row["caption"]) == (content_id("clip", 1), None, None)


def test_the_overview_counts_rows_once_whatever_their_attempts(small):
    small.append("videos", [bad_row({}, ("truncated", "ends early"), video_id=content_id("other"))])
    small.append("videos", [ok_row({"attempt": 2}, video_id=content_id("other"))])
    [facts] = [table for table in overview(small.root) if table.table == "videos"]
    assert (facts.num_rows, dict(facts.statuses)) == (2, {"ok": 2})
    assert read_table(small.root, "videos", newest=False).num_rows == 3
    assert facts.size_bytes > 0
