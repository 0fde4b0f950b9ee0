"""Rows of any table as CSV, JSON lines or Parquet, streamed."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from tasks.tables import storage
from tasks.tables.delta import TableError, as_dataset, open_table, read_table
from tasks.tables.manifest import CLIPS_WITH_SCORES, Filter, check_names, filter_expression, select_rows
from tasks.tables.plain_text import spreadsheet_cell
from tasks.tables.schemas import ID_COLUMNS, SCHEMAS
from tasks.tables.storage import absolute_root

FORMATS = ("csv", "jsonl", "parquet")


def export_rows(
    root: str,
    table: str,
    filters: Sequence[Filter] = (),
    columns: Sequence[str] | None = None,
    version: int | None = None,
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of the newest rows, read as a stream, so that a table of latents need not fit in memory.

    Raises:
        TableError: the table has not been written; unknown column or version.
    """
    if table == CLIPS_WITH_SCORES:
        rows = select_rows(root, table, filters, columns, version)
        return rows.schema, iter(rows.to_batches())
    delta, schema, id_column = open_table(root, table, version), SCHEMAS[table], ID_COLUMNS[table]
    if delta is None:
        raise TableError(f"table {table!r} has not been written under {root} yet")
    check_names(columns, schema)
    names = list(columns) if columns else schema.names
    newest = read_table(root, table, [id_column, "attempt"], version, filter_expression(filters, schema))
    ids = newest[id_column].combine_chunks()
    needed = list(dict.fromkeys([*names, id_column, "attempt"]))

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in as_dataset(delta, table).to_batches(columns=needed, batch_size=1024, batch_readahead=1):
            attempts = newest["attempt"].take(pc.index_in(batch[id_column], value_set=ids)).combine_chunks()
            yield batch.filter(pc.equal(batch["attempt"], attempts)).select(names)

    return pa.schema([schema.field(name) for name in names]), batches()


def write_export(uri: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches to a .csv, .jsonl or .parquet file, which appears when it is complete; returns the number of rows.

    Raises:
        TableError: the name has another suffix.
    """
    form = uri.rpartition(".")[2]
    if form not in FORMATS:
        raise TableError(f"cannot tell the format of {uri!r}: end its name in .csv, .jsonl or .parquet")
    with storage.writing(absolute_root(uri)) as path:
        if form == "parquet":
            return _write_parquet(path, schema, batches)
        num_rows = 0
        with open(path, "w", encoding="utf-8", newline="") as file:
            for line, new_rows in text_lines(form, schema, batches):
                file.write(line)
                num_rows += new_rows
        return num_rows


def _write_parquet(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    import pyarrow.parquet as pq

    num_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch)
                num_rows += batch.num_rows
    return num_rows


def text_lines(form: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, int]]:
    """Lines of CSV (with a header) or JSON, each with the number of rows in it: 0 for the header, otherwise 1.

    Binary columns are left out: Parquet has them. In CSV, lists are JSON, and texts that a spreadsheet would take for
    formulas begin with `'`.
    """
    names = [field.name for field in schema if not pa.types.is_binary(field.type)]
    if form == "csv":
        yield _csv_line(names), 0
    for batch in batches:
        for row in batch.select(names).to_pylist():
            if form == "csv":
                yield _csv_line([_csv_cell(value) for value in row.values()]), 1
            else:
                yield json.dumps(row, ensure_ascii=False, default=_json_value) + "\n", 1


def _csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _csv_cell(value: object) -> object:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else _json_value(value)
    return spreadsheet_cell(text)


def _json_value(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
