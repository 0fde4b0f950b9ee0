"""Parquet lists from elsewhere: cells that repeat or are huge, and damaged files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.sources import parquet_rows
from tasks.sources.list_formats import BadEntry, Entry
from tasks.sources.lists import read_list


def entries_of(path) -> list:
    return list(read_list(str(path), "parquet")[1])


@pytest.mark.parametrize("store_schema", [True, False])
@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string(), pa.binary()])
def test_a_megabyte_that_repeats_is_read_a_few_rows_at_a_time(tmp_path, store_schema, text_type):
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * 2**20], text_type))
    table = pa.table({"path": [f"{n}.mp4" for n in range(3000)], "text": long})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=store_schema)
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    rows = parquet_rows.parquet_rows(str(tmp_path / "a.parquet"))
    assert [row["path"] for _, row in zip(range(40), rows, strict=False)] == [f"{n}.mp4" for n in range(40)]


def test_a_cell_that_is_too_long_fails_its_own_row(tmp_path):
    table = pa.table({"path": ["a.mp4", "b.mp4", "c" * 5000], "text": ["x" * (2**20 + 1), "B.", "C."]})
    pq.write_table(table, tmp_path / "a.parquet")
    first, second, third = entries_of(tmp_path / "a.parquet")
    assert isinstance(first, BadEntry)
    assert "the column 'text' has more than" in first.reason
    assert isinstance(second, Entry)
    assert isinstance(third, BadEntry)
    assert "more than 4096 characters" in third.reason
    assert len(first.text) <= 200


def test_row_groups_that_claim_too_much_are_refused(tmp_path, monkeypatch):
    pq.write_table(pa.table({"path": ["a.mp4"] * 10}), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet_rows, "MAX_CHUNK_VALUES", 9)
    with pytest.raises(ValueError, match=r"a\.parquet .* column 'path' has 10 values"):
        entries_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_damaged_file_is_told_in_a_sentence(tmp_path, place):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"path": [f"{n}.mp4" for n in range(1000)], "text": ["T."] * 1000}), path)
    data = bytearray(path.read_bytes())
    start = int(len(data) * place)
    data[start : start + 64] = bytes(range(64))
    path.write_bytes(data)
    message = str(path)
    try:
        assert all(isinstance(entry, Entry | BadEntry) for entry in entries_of(path))
    except ValueError as err:
        message = str(err)
    assert "a.parquet" in message


def test_types_that_python_cannot_hold_fail_in_a_sentence(tmp_path):
    times = pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"path": ["a.mp4"], "when": times}), tmp_path / "a.parquet")
    (entry,) = entries_of(tmp_path / "a.parquet")
    assert isinstance(entry, BadEntry)
    assert "cannot be read" in entry.reason
