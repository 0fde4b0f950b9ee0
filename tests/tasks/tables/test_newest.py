"""Which row counts: the one that was committed last, whatever clocks and settings do. A few seconds."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.inspecting.verify import verify
from tasks.tables import appending
from tasks.tables.appending import append_again, append_block
from tasks.tables.content_ids import content_id
from tasks.tables.current import current_clips
from tasks.tables.delta import read_table
from tasks.tables.newest import ORDER, in_order, newest_by, newest_first, newest_ok_by, newest_row
from tasks.tables.rows import CommonRow, Lineage, ok_row
from tasks.tables.schemas import COMMON

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLIPS, SETTINGS, RUNS = ("clip 1", "clip 2", "clip 3"), ("a", "b", "c"), ("run 1", "run 2")
ORDER_TYPES = {name: COMMON[name] for name in ORDER}
COLUMN_TYPES = {"clip_id": pa.string(), "settings": pa.string(), "status": pa.string()}
SCHEMA = pa.schema([*COLUMN_TYPES.items(), *ORDER_TYPES.items()])
ASKED = st.lists(st.tuples(st.sampled_from(CLIPS), st.sampled_from(SETTINGS), st.integers(-9, 9)), max_size=20)


def row_of(
    clip: str,
    made_with: str,
    commit_order: int | None,
    hours: int = 0,
    attempt: int = 1,
    run: str = "",
    status: str = "ok",
) -> dict:
    created_at = NOW + timedelta(hours=hours)
    order = {"commit_order": commit_order, "attempt": attempt, "created_at": created_at, "run_id": run}
    return {"clip_id": clip, "settings": made_with, "status": status} | order


def table_of(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@given(asked=ASKED, random=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_rows_that_count_are_those_of_the_last_settings_asked_for_whatever_the_clocks_say(asked, random):
    rows = [row_of(clip, made_with, at, hours) for at, (clip, made_with, hours) in enumerate(asked)]
    shuffled = random.sample(rows, len(rows))
    last = {clip: made_with for clip, made_with, _ in asked}
    newest = newest_by(table_of(shuffled), ["clip_id"])
    assert dict(zip(newest["clip_id"].to_pylist(), newest["settings"].to_pylist(), strict=True)) == last
    assert newest.num_rows == len(last)
    assert in_order(table_of(shuffled)).to_pylist() == rows
    assert newest_first(table_of(shuffled)).to_pylist() == rows[::-1]
    assert newest_row(table_of(shuffled), CommonRow) == (rows[-1] if rows else None)


STATUSES = st.lists(st.tuples(st.sampled_from(CLIPS), st.sampled_from(("ok", "failed", "skipped"))), max_size=12)


@given(written=STATUSES, random=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_a_newer_failed_row_means_that_there_is_no_value_now(written, random):
    rows = [row_of(clip, str(at), at, status=status) for at, (clip, status) in enumerate(written)]
    last = {row["clip_id"]: row for row in rows}
    newest = newest_ok_by(table_of(random.sample(rows, len(rows))), ["clip_id"]).to_pylist()
    assert {row["clip_id"]: row for row in newest} == {clip: row for clip, row in last.items() if row["status"] == "ok"}
    assert len(newest) == len({row["clip_id"] for row in newest})


COMMITS = st.tuples(
    st.none() | st.integers(0, 2), st.integers(1, 2), st.integers(-1, 1), st.sampled_from(RUNS), st.sampled_from(CLIPS)
)


@given(commits=st.lists(COMMITS, unique=True, max_size=12), random=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_commits_from_one_version_are_ordered_alike_by_every_reader(commits, random):
    rows = [
        row_of(clip, str(number), order, hours, attempt, run)
        for number, (order, attempt, hours, run, clip) in enumerate(commits)
    ]
    readers = [newest_by(table_of(random.sample(rows, len(rows))), ["clip_id"]).sort_by("clip_id") for _ in range(2)]
    assert readers[0] == readers[1]


def test_rows_of_files_without_an_order_come_first_and_rows_of_one_commit_count_in_their_order():
    rows = [row_of("clip", "new", 0), row_of("clip", "old", None, hours=5, attempt=7)]
    assert newest_row(table_of(rows), CommonRow) == rows[0]
    rows = [row_of("clip", "first", 3), row_of("clip", "second", 3)]
    assert newest_by(table_of(rows), ["clip_id"]).to_pylist() == rows[1:]


@contextlib.contextmanager
def clock(hours: float) -> Iterator[None]:
    """The clock of the writer is so many hours ahead."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=hours)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appending, "datetime", Ahead)
        yield


def made_by(made_with: str, run: str = "run") -> Lineage:
    return Lineage(run, "step", "1", made_with, "code")


@given(asked=st.lists(st.tuples(st.sampled_from(SETTINGS), st.integers(-9, 9)), min_size=3, max_size=6))
@settings(deadline=None, max_examples=6)
def test_going_back_and_forth_between_settings_with_any_clock_in_a_real_table(asked):
    """Scores have an id for each of the settings; of videos, all settings share one id."""
    with tempfile.TemporaryDirectory() as root:
        for made_with, hours in asked:
            with clock(hours):
                ask(root, "scores", content_id("clip", made_with), {"clip_id": "clip", "scorer": "motion"}, made_with)
                ask(root, "videos", content_id("video"), {"path": made_with}, made_with)
            scores = read_table(root, "scores", ["clip_id", "scorer", "params_hash", *ORDER])
            assert newest_by(scores, ["clip_id", "scorer"])["params_hash"].to_pylist() == [made_with]
            assert read_table(root, "videos", ["path", "params_hash"]).to_pylist() == [
                {"path": made_with, "params_hash": made_with}
            ]
        assert doubles(root) == []


def doubles(root: str) -> list[str]:
    """Levels of the findings on videos with two rows of one attempt."""
    checked = [finding for finding in verify(root, "videos") if finding.check == "one row per id and attempt"]
    return [finding.level for finding in checked if finding.num_bad]


def ask(root: str, table: str, row_id: str, columns: dict, made_with: str) -> None:
    """What a step does: make the row if there is none of these settings, else make it count again if need be."""
    id_column = {"scores": "score_id", "videos": "video_id"}[table]
    ours = pc.field("params_hash") == made_with
    rows = read_table(root, table, [id_column, "params_hash", *ORDER], newest=False)
    if not rows.filter(ours).num_rows:
        append_block(root, table, [ok_row({}, **{id_column: row_id}, **columns)], "block", made_by(made_with))
    elif newest_row(rows, CommonRow)["params_hash"] != made_with:
        append_again(root, table, [row_id], made_by(made_with), ours)


TWO_SETTINGS = """
import sys
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, ok_row

root, made_with = sys.argv[1:]
for number in range(4):  # the same blocks, as two runs of the clips step on the same videos make them
    video_id, clip_id = content_id("video", number), content_id("clip", number, made_with)
    for table, row in (
        ("clips", {"clip_id": clip_id, "video_id": video_id, "start_frame": 0}),
        ("videos", {"video_id": video_id, "clip_ids": [clip_id]}),
    ):
        lineage = Lineage(made_with, "clips", "2", made_with, "")
        append_block(root, table, [ok_row({}, **row)], f"{table} {number}", lineage)
"""


def test_two_processes_with_other_settings_lose_no_row_and_each_finds_its_own_clips(tmp_path):
    root = str(tmp_path)
    writers = [subprocess.Popen([sys.executable, "-c", TWO_SETTINGS, root, made_with]) for made_with in "ab"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    rows = read_table(root, "videos", ["video_id", "params_hash"], newest=False).to_pylist()
    assert len(rows) == len({(row["video_id"], row["params_hash"]) for row in rows}) == 8
    for made_with in "ab":
        expected = {content_id("clip", number, made_with) for number in range(4)}
        assert set(current_clips(root, ["clip_id"], made_with)["clip_id"].to_pylist()) == expected
    assert current_clips(root, ["clip_id"]).num_rows == 4
    assert doubles(root) == []


def test_a_row_whose_attempt_other_settings_have_taken_becomes_the_next_attempt_once(tmp_path):
    root = str(tmp_path)
    video = ok_row({}, video_id=content_id("video"))
    assert append_block(root, "videos", [video], "block", made_by("a")) == 1
    assert append_block(root, "videos", [video], "block", made_by("b")) == 1
    for block_id, made_with in (("block", "b"), ("another block", "b"), ("another block", "a")):
        assert append_block(root, "videos", [video], block_id, made_by(made_with)) == 0
    rows = read_table(root, "videos", ["attempt", "params_hash"], newest=False).sort_by("attempt").to_pylist()
    assert rows == [{"attempt": 1, "params_hash": "a"}, {"attempt": 2, "params_hash": "b"}]
