"""Tables: ids are contents, appends happen exactly once, the newest attempt is what readers see."""

import subprocess
import sys
import threading
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from tasks.inspecting.export import export_rows
from tasks.inspecting.leftovers import unnamed_parquet
from tasks.inspecting.verify import verify
from tasks.tables.appending import append_block, compact
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.delta import TableError, open_table, read_table, table_uri, table_version
from tasks.tables.manifest import parse_filter, select_rows
from tasks.tables.rows import Lineage, bad_row, ok_row
from tasks.tables.schemas import COMMON, ID_COLUMNS, SCHEMAS

LINEAGE = Lineage("run", "step", "1", "params", "code")


def caption(number: int, **columns) -> dict:
    return ok_row({}, caption_id=content_id("caption", number), text=f"text {number}") | columns


def test_every_table_starts_with_its_id_and_ends_with_the_common_columns():
    for table, schema in SCHEMAS.items():
        assert schema.names[0] == ID_COLUMNS[table]
        assert schema.names[-len(COMMON) :] == list(COMMON)


def test_a_block_is_appended_once(tmp_path):
    root = str(tmp_path)
    assert append_block(root, "captions", [caption(1), caption(2)], "block", LINEAGE)
    assert not append_block(root, "captions", [caption(1), caption(2)], "block", LINEAGE)
    assert read_table(root, "captions").num_rows == 2


def test_rows_carry_where_they_came_from(tmp_path):
    append_block(str(tmp_path), "captions", [caption(1)], "block", LINEAGE)
    row = read_table(str(tmp_path), "captions").to_pylist()[0]
    assert (row["run_id"], row["step"], row["step_version"], row["params_hash"]) == ("run", "step", "1", "params")
    assert row["created_at"].tzinfo is not None


def test_rows_that_another_run_has_added_are_left_out_of_a_block(tmp_path):
    root = str(tmp_path)
    assert append_block(root, "captions", [caption(1), caption(2)], "first", LINEAGE) == 2
    assert append_block(root, "captions", [caption(2), caption(3)], "second", LINEAGE) == 1
    assert append_block(root, "captions", [caption(1), caption(3)], "third", LINEAGE) == 0
    assert append_block(root, "captions", [caption(1, attempt=2)], "retry", LINEAGE) == 1
    rows = read_table(root, "captions", ["caption_id", "attempt"], newest=False).to_pylist()
    expected = [(content_id("caption", number), attempt) for number, attempt in ((1, 1), (1, 2), (2, 1), (3, 1))]
    assert sorted((row["caption_id"], row["attempt"]) for row in rows) == sorted(expected)


OVERLAPPING = """
import sys
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage

size = int(sys.argv[2])
for first in range(0, 60, size):
    rows = [{"caption_id": content_id("caption", number)} for number in range(first, first + size)]
    block_id = content_id("block", first, size)
    append_block(sys.argv[1], "captions", rows, block_id, Lineage("run", "step", "1", "params", "code"))
"""


def test_readers_see_each_row_once_when_three_processes_write_the_same_rows_in_other_blocks(tmp_path):
    root = str(tmp_path)
    writers = [subprocess.Popen([sys.executable, "-c", OVERLAPPING, root, size]) for size in ("2", "3", "5")]
    assert [writer.wait(120) for writer in writers] == [0] * 3
    ids = [content_id("caption", number) for number in range(60)]
    assert sorted(read_table(root, "captions")["caption_id"].to_pylist()) == sorted(ids)
    # Blocks written in the same moment are not seen: such doubles are a warning, not damage.
    levels = {finding.level for finding in verify(root, "captions") if finding.check == "one row per id and attempt"}
    assert levels <= {"ok", "warn"}


WRITER = """
import sys
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage

def append(block_id, number):
    rows = [{"caption_id": content_id("caption", number), "text": "text"}]
    append_block(sys.argv[1], "captions", rows, block_id, Lineage("run", "step", "1", "params", "code"))

for block in range(4):
    append(f"{sys.argv[2]}-{block}", 100 * int(sys.argv[2]) + block)
    append(f"shared-{block}", -block - 1)
"""


def test_writers_in_four_processes_lose_nothing_and_commit_shared_blocks_once(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)]) for number in (1, 2, 3, 4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    rows = read_table(str(tmp_path), "captions", newest=False)
    assert rows.num_rows == 4 * 4 + 4
    assert len(set(rows["caption_id"].to_pylist())) == rows.num_rows


def test_readers_see_the_latest_attempt(tmp_path):
    root = str(tmp_path)
    failed = bad_row({"attempt": 1}, ("timeout", "took too long"), caption_id=content_id("caption", 1))
    append_block(root, "captions", [failed, caption(2)], "first", LINEAGE)
    append_block(root, "captions", [caption(1, attempt=2)], "second", LINEAGE)
    newest = {row["caption_id"]: row["status"] for row in read_table(root, "captions").to_pylist()}
    assert newest == {content_id("caption", 1): "ok", content_id("caption", 2): "ok"}
    assert read_table(root, "captions", newest=False).num_rows == 3


def test_a_filter_sees_only_latest_attempts(tmp_path):
    root = str(tmp_path)
    append_block(root, "captions", [bad_row({}, ("x", "y"), caption_id="1" * 32)], "first", LINEAGE)
    append_block(root, "captions", [ok_row({"attempt": 2}, caption_id="1" * 32)], "second", LINEAGE)
    assert read_table(root, "captions", where=pc.field("status") == "failed").num_rows == 0


def test_rows_by_id_are_read_without_the_files_of_others(tmp_path):
    root = str(tmp_path)
    latents = {name: ok_row({}, latent_id=content_id(name), latent=bytes(8), shape=[1]) for name in ("one", "other")}
    for name, row in latents.items():
        append_block(root, "latents", [row], name, LINEAGE)
    wanted = content_id("one")
    for path in (tmp_path / "tables" / "latents").glob("*.parquet"):
        if pq.read_table(path, columns=["latent_id"])[0].to_pylist() != [wanted]:
            path.unlink()
    rows = read_table(root, "latents", where=pc.field("latent_id").isin([wanted]))
    assert rows["latent_id"].to_pylist() == [wanted]


def test_a_pinned_version_does_not_see_later_rows(tmp_path):
    root = str(tmp_path)
    append_block(root, "captions", [caption(1)], "1", LINEAGE)
    version = table_version(root, "captions")
    append_block(root, "captions", [caption(2)], "2", LINEAGE)
    assert read_table(root, "captions", version=version).num_rows == 1
    assert read_table(root, "captions").num_rows == 2
    with pytest.raises(TableError, match="has no version 99"):
        read_table(root, "captions", version=99)


def test_a_table_that_was_never_written_reads_as_empty(tmp_path):
    assert table_version(str(tmp_path), "latents") == -1
    empty = read_table(str(tmp_path), "latents", ["latent_id", "latent"])
    assert empty.num_rows == 0
    assert empty.schema.names == ["latent_id", "latent"]


def latent(number: int, size: int) -> dict:
    blob = bytes([number]) * size
    return ok_row({}, latent_id=str(number), shape=[size], dtype="uint8", latent=blob, crc32=crc32(blob))


@pytest.mark.parametrize(("size", "row_groups"), [(1_200_000, 3), (1_000, 1)])
def test_big_blobs_get_a_row_group_each_uncompressed(tmp_path, size, row_groups):
    append_block(str(tmp_path), "latents", [latent(number, size) for number in range(3)], "b", LINEAGE)
    [file] = DeltaTable(table_uri(str(tmp_path), "latents")).file_uris()
    parquet = pq.ParquetFile(file)
    assert parquet.metadata.num_row_groups == row_groups
    column = parquet.schema_arrow.names.index("latent")
    assert parquet.metadata.row_group(0).column(column).compression == "UNCOMPRESSED"
    assert parquet.read_row_group(row_groups - 1, ["latent"])["latent"][-1].as_py() == bytes([2]) * size


def test_unknown_columns_and_tables_are_named(tmp_path):
    with pytest.raises(TableError, match=r"captions.*no columns \['colour'\]"):
        append_block(str(tmp_path), "captions", [caption(1, colour="red")], "b", LINEAGE)
    with pytest.raises(TableError, match="there is no table 'clip'"):
        open_table(str(tmp_path), "clip")


def test_a_table_of_another_schema_version_is_refused_with_its_columns(tmp_path):
    old = pa.table({"caption_id": ["a"], "text": [1]})
    write_deltalake(table_uri(str(tmp_path), "captions"), old)
    with pytest.raises(TableError, match=r"missing columns .*'attempt'.*text \(int64, expected string\)"):
        read_table(str(tmp_path), "captions")


def test_small_files_become_one_and_neither_rows_nor_earlier_versions_change(tmp_path):
    root = str(tmp_path)
    for number in range(8):
        append_block(root, "captions", [caption(number)], f"block {number}", LINEAGE)
    before, version = read_table(root, "captions"), table_version(root, "captions")
    held = open_table(root, "captions")
    compact(open_table(root, "captions"), "captions")
    assert len(open_table(root, "captions").file_uris()) == 1
    assert read_table(root, "captions").sort_by("caption_id") == before.sort_by("caption_id")
    assert not append_block(root, "captions", [caption(3)], "block 3", LINEAGE)
    assert not append_block(root, "captions", [caption(3)], "another block", LINEAGE)
    assert append_block(root, "captions", [caption(8)], "block 8", LINEAGE) == 1
    # What a pinned version needs outlives even a vacuum that spares nothing.
    assert unnamed_parquet(root, "captions", older_than_h=0, delete=True) == []
    assert read_table(root, "captions", version=version) == before
    assert held.to_pyarrow_table().num_rows == 8


def test_rewriting_small_files_beside_writers_loses_and_doubles_nothing(tmp_path):
    root = str(tmp_path)
    append_block(root, "captions", [caption(0)], "block 0", LINEAGE)

    def write(numbers: range) -> None:
        for number in numbers:
            append_block(root, "captions", [caption(number)], f"block {number}", LINEAGE)

    writers = [threading.Thread(target=write, args=(range(first, 37, 3),)) for first in (1, 2, 3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        compact(open_table(root, "captions"), "captions")
    for writer in writers:
        writer.join()
    ids = read_table(root, "captions", newest=False)["caption_id"].to_pylist()
    assert sorted(ids) == sorted(content_id("caption", number) for number in range(37))


def test_tables_of_large_values_keep_their_files(tmp_path):
    for number in range(3):
        row = ok_row(
            {}, latent_id=content_id(number), shape=[4], dtype="bfloat16", latent=bytes(8), crc32=crc32(bytes(8))
        )
        append_block(str(tmp_path), "latents", [row], f"block {number}", LINEAGE)
    compact(open_table(str(tmp_path), "latents"), "latents")
    assert len(open_table(str(tmp_path), "latents").file_uris()) == 3


ADDED = ("language", "json")  # columns that the tables of these tests were written without


@pytest.fixture
def earlier(tmp_path) -> str:
    """A root whose captions were written by a version that knew fewer columns."""
    names = [name for name in SCHEMAS["captions"].names if name not in ADDED]
    schema = pa.schema([SCHEMAS["captions"].field(name) for name in names])
    row = caption(1) | {"created_at": datetime.now(UTC), "error_type": "", "error": ""}
    uri = table_uri(str(tmp_path), "captions")
    DeltaTable.create(uri, schema=schema, name="captions")
    write_deltalake(uri, pa.Table.from_pylist([row], schema=schema), mode="append")
    return str(tmp_path)


def test_columns_that_were_added_since_a_table_was_written_read_as_null(earlier):
    rows = read_table(earlier, "captions")
    assert rows.schema.equals(SCHEMAS["captions"])
    assert (rows["text"].to_pylist(), rows["language"].to_pylist()) == (["text 1"], [None])
    assert read_table(earlier, "captions", ["text"], where=pc.field("language").is_null()).num_rows == 1
    assert not [finding for finding in verify(earlier, "captions") if finding.level == "fail"]
    assert next(b.to_pylist() for b in export_rows(earlier, "captions", columns=["language"])[1]) == [
        {"language": None}
    ]
    assert select_rows(earlier, "captions", [parse_filter("language=null")], ["text"]).num_rows == 1


def test_the_next_append_adds_the_columns_and_earlier_versions_still_read_as_null(earlier):
    before = table_version(earlier, "captions")
    assert append_block(earlier, "captions", [caption(2, language="en")], "2", LINEAGE) == 1
    assert append_block(earlier, "captions", [caption(2, language="en")], "2", LINEAGE) == 0
    assert table_version(earlier, "captions") == before + 2  # one commit adds the columns, one the rows
    rows = read_table(earlier, "captions", ["text", "language"]).sort_by("text")
    assert rows["language"].to_pylist() == [None, "en"]
    assert read_table(earlier, "captions", ["language"], before).to_pylist() == [{"language": None}]


def test_writers_that_add_the_same_columns_at_once_lose_nothing(earlier):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, earlier, str(number)]) for number in (1, 2)]
    assert [writer.wait(120) for writer in writers] == [0] * 2
    assert read_table(earlier, "captions", newest=False).num_rows == 1 + 2 * 4 + 4


def test_a_writer_that_opened_the_table_before_the_columns_came_tries_again(earlier):
    stale = DeltaTable(table_uri(earlier, "captions"))
    append_block(earlier, "captions", [caption(2, language="en")], "2", LINEAGE)
    late = pa.Table.from_pylist([caption(3, language="en")], schema=SCHEMAS["captions"])
    with pytest.raises(CommitFailedError):  # what append_block answers with the newer table
        write_deltalake(stale, late, mode="append", schema_mode="merge")


def test_nothing_is_appended_to_a_table_with_columns_of_a_later_version(tmp_path):
    uri = table_uri(str(tmp_path), "captions")
    DeltaTable.create(uri, schema=SCHEMAS["captions"].append(pa.field("mood", pa.string())), name="captions")
    assert read_table(str(tmp_path), "captions").num_rows == 0
    with pytest.raises(TableError, match=r"'captions'.*\['mood'\].*a later version wrote it"):
        append_block(str(tmp_path), "captions", [caption(1)], "b", LINEAGE)
