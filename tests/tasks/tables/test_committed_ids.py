"""An append finds rows that were committed before, without a search of the table at every commit."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.tables.appending import append_block, compact
from tasks.tables.committed_ids import CommittedIds
from tasks.tables.content_ids import content_id
from tasks.tables.delta import open_table, read_table, table_version
from tasks.tables.rows import Lineage, ok_row

LINEAGE = Lineage("run", "step", "1", "params", "code")
OTHER_SETTINGS = Lineage("run", "step", "1", "other", "code")
WRITER = "a" * 32


def rows(*numbers: int) -> list[dict]:
    return [ok_row({}, score_id=content_id(number), clip_id="c", scorer="motion", value=1.0) for number in numbers]


def may_contain(ids: CommittedIds, root: str, *numbers: int) -> list[bool]:
    delta = open_table(root, "scores")
    assert delta is not None
    return ids.may_contain(delta, pa.chunked_array([[content_id(number) for number in numbers]])).tolist()


@pytest.fixture
def root(tmp_path) -> str:
    for number in range(4):
        append_block(str(tmp_path), "scores", rows(number), f"block {number}", LINEAGE)
    return str(tmp_path)


def test_ids_of_all_commits_and_of_later_ones_are_known(root):
    ids = CommittedIds("scores")
    assert may_contain(ids, root, 0, 3, 4) == [True, True, False]
    append_block(root, "scores", rows(4, 5), "later", LINEAGE)
    assert may_contain(ids, root, 0, 3, 4, 5, 6) == [True] * 4 + [False]


def test_an_actor_knows_only_what_others_commit_after_the_step_began(root):
    ids = CommittedIds("scores", table_version(root, "scores"), WRITER)
    append_block(root, "scores", rows(4), "own", LINEAGE, ids)
    append_block(root, "scores", rows(5), "of another run", LINEAGE)
    assert may_contain(ids, root, 0, 4, 5) == [False, False, True]
    assert append_block(root, "scores", rows(5, 6), "overlapping", LINEAGE, ids) == 1
    assert append_block(root, "scores", rows(5, 6), "overlapping", LINEAGE, ids) == 0, "Ray runs a block again"


def test_rows_that_another_run_commits_with_other_settings_meanwhile_are_another_attempt(root):
    ids = CommittedIds("scores", table_version(root, "scores"), WRITER)
    append_block(root, "scores", rows(7), "of another run", OTHER_SETTINGS)
    assert append_block(root, "scores", rows(7), "own", LINEAGE, ids) == 1
    attempts = read_table(root, "scores", ["score_id", "attempt", "params_hash"], newest=False).to_pylist()
    mine = {row["params_hash"]: row["attempt"] for row in attempts if row["score_id"] == content_id(7)}
    assert mine == {"other": 1, "params": 2}


def test_a_merge_of_files_and_a_removed_log_lose_no_id(root):
    version = table_version(root, "scores")
    ids = CommittedIds("scores", version, WRITER)
    append_block(root, "scores", rows(5), "of another run", LINEAGE)
    delta = open_table(root, "scores")
    assert delta is not None
    compact(delta, "scores")
    merged = Path(root, "merged")
    shutil.copytree(Path(root, "tables"), merged / "tables")
    assert may_contain(ids, root, 5) == [True]
    delta.create_checkpoint()
    Path(root, "tables", "scores", "_delta_log", f"{version + 1:020d}.json").unlink()
    assert may_contain(CommittedIds("scores", version, WRITER), root, 5, 0, 9) == [True, True, False]


def test_ids_that_are_not_hashes_are_told_apart(tmp_path):
    names = ["", "a", "b", "0123456789abcdef", "0123456789abcdefX"]
    for name in names[:3]:
        append_block(str(tmp_path), "scores", [ok_row({}, score_id=name)], name, LINEAGE)
    delta = open_table(str(tmp_path), "scores")
    assert delta is not None
    ids = CommittedIds("scores")
    assert ids.may_contain(delta, pa.chunked_array([names])).tolist() == [True] * 3 + [False] * 2
