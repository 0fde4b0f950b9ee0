"""Ids are contents, and a table that is written at this moment is not damaged."""

import re

import pytest

from tasks.tables import delta
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.delta import open_table, parquet_files, table_uri, table_version
from tasks.tables.rows import Lineage, ok_row

LINEAGE = Lineage("run", "step", "1", "params", "code")


def test_content_id_is_128_bits_of_hex_and_depends_on_every_part():
    assert re.fullmatch(r"[0-9a-f]{32}", content_id("a", 1))
    assert content_id("a", 1) == content_id("a", 1)
    assert len({content_id("a", 1), content_id("a", 2), content_id("a1"), content_id(b"a", 1), content_id(1, "a")}) == 5
    assert content_id({"x": 1, "y": 2}) == content_id({"y": 2, "x": 1})


def test_parts_of_an_id_cannot_run_into_each_other():
    assert content_id("ab", "c") != content_id("a", "bc")


def test_a_table_that_another_process_creates_while_it_is_opened_is_not_damaged(tmp_path, monkeypatch):
    """On a slow store the first file often appears between the look at the log and the look at the files."""

    def listed_later(uri: str) -> dict[str, int]:
        monkeypatch.undo()
        row = ok_row({}, caption_id=content_id("caption", 1), text="a text")
        append_block(str(tmp_path), "captions", [row], "block", LINEAGE)
        return parquet_files(uri)

    monkeypatch.setattr(delta, "parquet_files", listed_later)
    table = open_table(str(tmp_path), "captions")
    assert table is not None
    assert table.to_pyarrow_table().num_rows == 1


def test_a_version_before_the_first_is_no_table(tmp_path):
    assert table_version(str(tmp_path), "captions") == -1
    assert open_table(str(tmp_path), "captions", version=-1) is None


def test_an_unknown_table_is_refused_with_the_names_of_all():
    with pytest.raises(delta.TableError, match=r"there is no table 'clip': the tables are .*clips"):
        table_uri("/root", "clip")
