"""Rows of a Parquet file from elsewhere, with a bound on the memory that its cells take."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.tables import storage
from tasks.tables.plain_text import MAX_VALUE, cut
from tasks.tables.web_hosts import Allowed

MAX_CHUNK_BYTES = 2**30  # of a column in a row group, uncompressed
MAX_CHUNK_VALUES = 20 * 10**6
MAX_SLICE_BYTES = 16 * 2**20  # of rows that are Python objects at the same time
UNREADABLE = (pa.ArrowException, OSError, ValueError, ArithmeticError, MemoryError)  # errors of a damaged file


def column_names(uri: str, hosts: Allowed = ()) -> list[str]:
    """Names of the columns. hosts: as `storage.filesystem`.

    Raises:
        ValueError: the file cannot be read, or claims columns that are larger than any list of videos needs.
    """
    fs, path = storage.filesystem(uri, hosts)
    try:
        with fs.open(path, "rb") as file:
            table = pq.ParquetFile(file)
            _check_chunks(table.metadata)
            return table.schema_arrow.names
    except UNREADABLE as err:
        raise ValueError(f"list {uri} cannot be read as Parquet: {cut(str(err), 500)}") from err


def parquet_rows(uri: str, hosts: Allowed = ()) -> Iterator[dict[str, object]]:
    """The rows in their order. hosts: as `storage.filesystem`.

    Raises:
        UNREADABLE: the next row and those after it cannot be read.
    """
    fs, path = storage.filesystem(uri, hosts)
    with fs.open(path, "rb") as file:
        # Cells that repeat stay one value in memory: a file of kilobytes may repeat a megabyte a million times.
        kinds = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
        texts = [field.name for field in pq.ParquetFile(file).schema_arrow if field.type in kinds]
        for batch in pq.ParquetFile(file, read_dictionary=texts).iter_batches(batch_size=1024):
            step = max(1, MAX_SLICE_BYTES // max(1, sum(_cell_bytes(column) for column in batch.columns)))
            for start in range(0, batch.num_rows, step):
                yield from batch.slice(start, step).to_pylist()


def _check_chunks(metadata: Any) -> None:
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            if chunk.total_uncompressed_size > MAX_CHUNK_BYTES or chunk.num_values > MAX_CHUNK_VALUES:
                raise ValueError(
                    f"column {cut(chunk.path_in_schema, MAX_VALUE)!r} has {chunk.num_values} values of "
                    f"{chunk.total_uncompressed_size} bytes in one row group: write smaller row groups"
                )


def _cell_bytes(column: Any) -> int:
    """The most bytes that a cell of a column may have."""
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary)  # pyright: ignore[reportAttributeAccessIssue]
        return pc.max(lengths).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
    return column.nbytes // max(1, len(column)) if pa.types.is_primitive(column.type) else column.nbytes
