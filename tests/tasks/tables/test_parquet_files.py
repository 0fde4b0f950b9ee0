"""Files of tables: the statistics by which readers skip files never hide a row."""

import math
import re
from pathlib import Path

import pyarrow.compute as pc
import pytest

from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.delta import as_dataset, open_table
from tasks.tables.rows import Lineage, ok_row
from tasks.tables.storage import file_crc32

LINEAGE = Lineage("run", "step", "1", "params", "code")
LONG = "a scene at dusk, " * 20


@pytest.mark.parametrize("value", [0.5, -3.0, math.nan, None])
@pytest.mark.parametrize("details", [LONG, "", None])
def test_filters_on_any_column_find_their_rows_in_our_dataset_and_in_the_one_of_deltalake(tmp_path, value, details):
    row = ok_row({}, score_id=content_id(1), clip_id="c", scorer="motion", value=value, details=details)
    append_block(str(tmp_path), "scores", [row], "block", LINEAGE)
    delta = open_table(str(tmp_path), "scores")
    assert delta is not None
    conditions = [pc.field("status") == "ok", pc.field("scorer").isin(["motion"]), pc.field("attempt") == 1]
    conditions.append(pc.field("score_id") == content_id(1))
    conditions.append(pc.field("details").is_null() if details is None else pc.field("details") == details)
    for condition in conditions:
        assert as_dataset(delta, "scores").to_table(filter=condition).num_rows == 1, condition
        assert delta.to_pyarrow_dataset().to_table(filter=condition).num_rows == 1, condition
    if value is not None and value == value:
        assert delta.to_pyarrow_dataset().to_table(filter=pc.field("value") == value).num_rows == 1
    assert delta.count() == 1


def test_rows_with_blobs_are_found_by_columns_without_statistics(tmp_path):
    own = {"shape": [1, 2], "dtype": "float16", "embedding": b"1234", "crc32": crc32(b"1234")}
    rows = [ok_row({}, embedding_id=content_id(number), clip_id=str(number), **own) for number in range(3)]
    append_block(str(tmp_path), "embeddings", rows, "block", LINEAGE)
    delta = open_table(str(tmp_path), "embeddings")
    assert delta is not None
    condition = (pc.field("status") == "ok") & pc.field("embedding_id").isin([content_id(0), content_id(1)])
    assert as_dataset(delta, "embeddings").to_table(filter=condition).num_rows == 2


def test_the_name_of_a_file_ends_in_the_checksum_of_its_bytes(tmp_path):
    append_block(str(tmp_path), "scores", [ok_row({}, score_id=content_id(1))], "block", LINEAGE)
    [path] = Path(tmp_path, "tables", "scores").glob("*.parquet")
    assert re.fullmatch(rf"[0-9a-f]{{32}}-[0-9a-f]{{16}}-{file_crc32(str(path)):08x}\.parquet", path.name)
