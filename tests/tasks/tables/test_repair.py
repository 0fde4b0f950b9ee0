"""Damage to a table is named with its file, and `repair` brings every row back whose Parquet file is whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.inspecting.leftovers import vacuum
from tasks.inspecting.verify import verify
from tasks.tables.appending import append_block, compact
from tasks.tables.content_ids import content_id
from tasks.tables.delta import DamagedTableError, open_table, read_table, table_version
from tasks.tables.log import log_damage, recorded_versions
from tasks.tables.repair import repair
from tasks.tables.rows import Lineage, ok_row
from tasks.tables.storage import write_bytes

LINEAGE = Lineage("run", "step", "1", "params", "code")
NUM_ROWS = 36  # commits: the log has a checkpoint at version 31


def append(root: str, number: int) -> int:
    row = ok_row({}, score_id=content_id(number), clip_id=content_id("clip", number), scorer="motion", value=1.0)
    return append_block(root, "scores", [row], f"block {number}", LINEAGE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "root"
    for number in range(NUM_ROWS):
        append(str(root), number)
    write_bytes(f"{root}/runs/run/1-scores.json", b'{"step": "scores", "versions": {"scores": 36}}')
    return root


@pytest.fixture
def root(whole, tmp_path) -> str:
    return str(shutil.copytree(whole, tmp_path / "root"))


def log(root: str) -> Path:
    return Path(root, "tables", "scores", "_delta_log")


def entry(root: str, version: int) -> Path:
    return log(root) / f"{version:020d}.json"


def checkpoint(root: str) -> Path:
    return next(log(root).glob("*.checkpoint.parquet"))


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def first_lines(path: Path) -> None:
    """Cut the lines off that name files."""
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if not line.startswith(b'{"add"')))


def first_entries_and_checkpoint(root: str) -> None:
    half(checkpoint(root))
    for version in (0, 1):
        entry(root, version).unlink()


# name -> (what is done to a root, name of a file that `verify` must name)
LOG_DAMAGES: dict[str, tuple[Callable[[str], object], str]] = {
    "last truncated": (lambda root: half(entry(root, 36)), "036.json"),
    "last garbage": (lambda root: entry(root, 36).write_bytes(os.urandom(500)), "036.json"),
    "last empty": (lambda root: entry(root, 36).write_bytes(b""), "036.json"),
    "last cut off between lines": (lambda root: first_lines(entry(root, 36)), "036.json"),
    "last gone": (lambda root: entry(root, 36).unlink(), "1-scores.json names version 36"),
    "middle gone": (lambda root: entry(root, 34).unlink(), "034.json"),
    "middle garbage": (lambda root: entry(root, 34).write_bytes(b"{"), "034.json"),
    "gone before the checkpoint": (lambda root: entry(root, 20).unlink(), "020.json"),
    "checkpoint gone": (lambda root: checkpoint(root).unlink(), "_last_checkpoint"),
    "checkpoint truncated": (lambda root: half(checkpoint(root)), "checkpoint.parquet"),
    "hint garbage": (lambda root: (log(root) / "_last_checkpoint").write_bytes(b"\x00?"), "_last_checkpoint"),
    "first entries and checkpoint": (first_entries_and_checkpoint, "checkpoint.parquet"),
    "whole log": (lambda root: shutil.rmtree(log(root)), "_delta_log"),
}


@pytest.mark.parametrize("name", LOG_DAMAGES)
def test_a_damaged_log_is_one_failed_check_and_repair_brings_every_row_back(root, name):
    damage, names = LOG_DAMAGES[name]
    damage(root)
    findings = list(verify(root))
    failed = [finding for finding in findings if finding.level == "fail"]
    [of_log] = [finding for finding in failed if finding.table == "scores" and finding.check != "clip_id is in clips"]
    assert names in of_log.example
    assert "repair" in of_log.advice
    assert not any("vacuum ROOT" in finding.advice for finding in findings if finding.level != "ok")
    planned = list(repair(root, "scores"))
    assert planned
    assert [finding for finding in verify(root) if finding.level == "fail"] == failed, "nothing is changed unasked"
    assert list(repair(root, "scores", apply=True))
    rows = read_table(root, "scores", ["score_id", "commit_order"]).sort_by("commit_order")
    assert rows["score_id"].to_pylist() == [content_id(number) for number in range(NUM_ROWS)]
    assert rows["commit_order"].to_pylist() == list(range(1, NUM_ROWS + 1))
    assert table_version(root, "scores") >= NUM_ROWS, "versions keep their numbers"
    assert not [
        finding for finding in verify(root, "scores") if finding.level == "fail" and "clips" not in finding.check
    ]
    assert list(repair(root, "scores")) == []
    assert append(root, 0) == 0
    assert append(root, NUM_ROWS) == 1


READERS_SEE = ("last truncated", "last empty", "last cut off between lines", "middle gone", "middle garbage")


@pytest.mark.parametrize("name", [*READERS_SEE, "checkpoint truncated", "whole log"])
def test_readers_of_a_damaged_log_get_a_sentence(root, name):
    LOG_DAMAGES[name][0](root)
    with pytest.raises(DamagedTableError, match=r"table 'scores' is damaged: .*_delta_log.*manifest repair"):
        read_table(root, "scores")


def test_writers_append_nothing_to_a_damaged_log(root):
    entry(root, 36).write_bytes(b"")
    with pytest.raises(DamagedTableError, match=r"036\.json is empty"):
        append(root, NUM_ROWS)


@pytest.mark.parametrize("name", ["last truncated", "last gone", "last empty"])
def test_vacuum_removes_nothing_while_a_commit_is_lost(root, name):
    LOG_DAMAGES[name][0](root)
    with pytest.raises(ValueError, match=r"nothing is removed, since the log of table 'scores' is damaged"):
        vacuum(root, older_than_h=0, delete=True)


def test_a_whole_log_has_no_damage_and_a_merge_leaves_no_orphans(root):
    assert log_damage(f"{root}/tables/scores") == []
    delta = open_table(root, "scores")
    assert delta is not None
    compact(delta, "scores")
    assert list(repair(root, "scores")) == []
    assert [finding.level for finding in verify(root, "scores") if "left-over" in finding.check] == ["ok"]


def test_rows_of_a_lost_merge_are_not_doubled(root):
    delta = open_table(root, "scores")
    assert delta is not None
    compact(delta, "scores")
    entry(root, 37).write_bytes(b"")
    assert list(repair(root, "scores", apply=True))
    assert read_table(root, "scores", newest=False).num_rows == NUM_ROWS


def data_file(root: str) -> Path:
    return sorted(Path(root, "tables", "scores").glob("*.parquet"))[0]


@pytest.mark.parametrize("damage", [Path.unlink, half, lambda path: path.write_bytes(b"")])
def test_a_lost_or_cut_file_of_rows_is_found_and_can_be_given_up(root, damage):
    path = data_file(root)
    damage(path)
    [finding] = [finding for finding in verify(root, "scores") if finding.level == "fail"]
    assert finding.check == "columns and files"
    assert path.name in finding.example
    with pytest.raises(DamagedTableError, match=path.name):
        read_table(root, "scores")
    assert list(repair(root, "scores", apply=True)) == [], "a copy of the file may still come back"
    assert list(repair(root, "scores", apply=True, give_up_damaged=True))
    assert read_table(root, "scores").num_rows == NUM_ROWS - 1
    assert sum(append(root, number) for number in range(NUM_ROWS)) == 1, "the next run computes the lost row"


def test_a_flipped_bit_in_every_column_of_a_file_is_found(root):
    path = data_file(root)
    original = path.read_bytes()
    row_group = pq.read_metadata(path).row_group(0)
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        for position in (start, start + column.total_compressed_size // 2, start + column.total_compressed_size - 1):
            data = bytearray(original)
            data[position] ^= 1
            path.write_bytes(data)
            failed = [finding for finding in verify(root, "scores") if finding.level == "fail"]
            assert [finding.check for finding in failed] == ["columns and files"], column.path_in_schema
            assert f"{path} was changed" in failed[0].example


def test_recorded_versions_are_the_greatest_that_any_result_states(root):
    write_bytes(f"{root}/runs/run/2-scores.json", b'{"step": "scores", "versions": {"scores": 7, "clips": 3}}')
    others = [b"not JSON", b"[]", b"[" * 100_000]
    others += [b'{"versions": [99]}', b'{"versions": null}', b'{"versions": {"a": "9"}}']
    for number, other in enumerate(others, 3):
        write_bytes(f"{root}/runs/run/{number}-other.json", other)
    versions = {table: version for table, (version, _) in recorded_versions(root).items()}
    assert versions == {"scores": 36, "clips": 3}
