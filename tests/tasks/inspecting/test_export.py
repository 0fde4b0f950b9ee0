"""Tables exported to CSV, JSON lines and Parquet."""

import json

import pyarrow.parquet as pq
import pytest

from tasks.inspecting.export import export_rows, text_lines, write_export
from tasks.tables.content_ids import content_id
from tasks.tables.delta import TableError
from tasks.tables.rows import ok_row


def test_exports_hold_the_latest_rows_in_each_format(small, tmp_path):
    small.append("captions", [ok_row({"attempt": 2}, caption_id=content_id("caption"), text='a "hill",\nat dawn')])
    columns = ["caption_id", "text"]
    for form in ("csv", "jsonl", "parquet"):
        assert write_export(str(tmp_path / f"out.{form}"), *export_rows(small.root, "captions", columns=columns)) == 1
    expected = {"caption_id": content_id("caption"), "text": 'a "hill",\nat dawn'}
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [expected]
    assert json.loads((tmp_path / "out.jsonl").read_text()) == expected
    assert (tmp_path / "out.csv").read_text() == f'caption_id,text\n{expected["caption_id"]},"a ""hill"",\nat dawn"\n'
    with pytest.raises(TableError, match=r"end its name in \.csv, \.jsonl or \.parquet"):
        write_export("out.xlsx", *export_rows(small.root, "captions"))


def test_binary_columns_are_exported_to_parquet_and_left_out_of_text(small, tmp_path):
    write_export(str(tmp_path / "latents.parquet"), *export_rows(small.root, "latents"))
    assert pq.read_table(tmp_path / "latents.parquet")["latent"].to_pylist() == [bytes([2]) * 16]
    [header, line] = [line for line, _ in text_lines("csv", *export_rows(small.root, "latents"))]
    assert "latent," not in header.removeprefix("latent_id,")
    assert '"[1, 2, 2, 2]"' in line
