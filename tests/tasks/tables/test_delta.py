"""Ids are contents, and a table that is written at this moment is not damaged."""

import pytest

from tasks.tables import delta
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.delta import open_table, parquet_files, table_uri, table_version
from tasks.tables.rows import Lineage, ok_row

LINEAGE = Lineage("run", "step", "1", "params", "code")


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
