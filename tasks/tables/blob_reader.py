"""Random access to rows of a table with binary columns, at a pinned version.

The index is in memory, the values stay in the files. A read loads the row group of one row, so that training needs
memory for its batches and not for the whole data set. Every process opens its own files.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import functools
import math
import os
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tasks.tables import storage
from tasks.tables.blobs import DTYPES, CorruptBlobError
from tasks.tables.content_ids import crc32
from tasks.tables.delta import open_table
from tasks.tables.newest import ORDER, newest_ok_by
from tasks.tables.schemas import BLOB_COLUMNS, ID_COLUMNS

OPEN_FILES = 128  # the limit of a process is about a thousand, and each file keeps its footer in memory
PLACE = ("file", "row_group", "row", "crc32", "dtype", "shape")  # what a reader keeps of each row
FACTS = ("status", "shape", "dtype", "crc32", *ORDER)


class BlobReader:
    """Binary values of the newest rows of a table that are ok.

    Args:
        root: of the tables.
        table: one with binary columns: latents, text_features, embeddings.
        version: of the table.
        ids: ids of the rows to read.

    ids: those whose rows exist and are ok, sorted.
    """

    def __init__(self, root: str, table: str, version: int, ids: Iterable[str] | pa.ChunkedArray):
        self.blobs = list(BLOB_COLUMNS[table])
        asked = ids if isinstance(ids, pa.ChunkedArray) else pa.array(ids, pa.string())
        self.uris, rows = _index(root, table, version, pc.unique(asked))
        rows = rows.select([ID_COLUMNS[table], *PLACE]).sort_by(ID_COLUMNS[table]).combine_chunks()
        self.ids: pa.ChunkedArray = rows[ID_COLUMNS[table]].cast(pa.string())  # without rows it has no type
        self._keys = np.array(self.ids.to_pylist(), "S")
        self._file, self._group, self._row, self._crc32 = (
            rows[name].to_numpy() for name in ("file", "row_group", "row", "crc32")
        )
        self._dtype, self._shape = rows["dtype"], rows["shape"]

    def shapes(self, ids: pa.ChunkedArray) -> list[tuple[int, ...]]:
        """Shape of the first value of each of these rows, of which each must be among `ids`; equal ones are shared."""
        distinct: dict[tuple[int, ...], tuple[int, ...]] = {}
        of_ids = self._shape.take(pc.index_in(ids, self.ids))
        return [distinct.setdefault(shape, shape) for shape in (tuple(value.as_py()) for value in of_ids)]

    def read(self, row_id: str, check: bool = True) -> tuple[Tensor, ...]:
        """The binary values of a row as read-only tensors that share the memory of the file buffer.

        The first has the shape of the row, the others are vectors. check: compare the checksum.

        Raises:
            KeyError: the row does not exist or is not ok.
            CorruptBlobError: checksum or length differ from those written, or the file cannot be read.
        """
        place = int(np.searchsorted(self._keys, row_id.encode()))
        if place == len(self._keys) or self._keys[place] != row_id.encode():
            raise KeyError(row_id)
        uri, group = self.uris[self._file[place]], int(self._group[place])
        try:
            columns = _open_file(uri, os.getpid()).read_row_group(group, self.blobs, use_threads=False)
        except (OSError, pa.ArrowException) as err:
            raise CorruptBlobError(f"{uri}, row group {group}: {err}") from err
        blobs = [columns[name].chunk(0)[int(self._row[place])].as_buffer() for name in self.blobs]
        if check and (sum32 := crc32(*map(memoryview, blobs))) != self._crc32[place]:
            raise CorruptBlobError(f"crc32 is {sum32:08x}, expected {int(self._crc32[place]):08x}")
        shape, dtype = self._shape[place].as_py(), DTYPES[self._dtype[place].as_py()]
        if blobs[0].size != math.prod(shape) * dtype.itemsize:
            raise CorruptBlobError(f"{blobs[0].size} bytes, expected {math.prod(shape)} of {dtype} for shape {shape}")
        first, *others = (_as_tensor(data).view(dtype) for data in blobs)
        return first.reshape(shape), *others


def _as_tensor(data: pa.Buffer) -> Tensor:
    """A uint8 tensor that shares the memory of a buffer."""
    return torch.from_dlpack(pa.Array.from_buffers(pa.uint8(), data.size, [None, data]))


def _index(root: str, table: str, version: int, ids: pa.Array) -> tuple[list[str], pa.Table]:
    """Files of a table; and the newest ok row of each id: file, row group and row in it, and its FACTS."""
    delta = open_table(root, table, version)
    if delta is None:
        raise KeyError(f"table {table!r} has not been written under {root}")
    id_column, uris = ID_COLUMNS[table], delta.file_uris()
    of_ids = pc.field(id_column).isin(ids)
    by_file = [
        rows.append_column("file", pa.repeat(pa.scalar(number, pa.int64()), rows.num_rows))
        for number, uri in enumerate(uris)
        if (rows := _rows_of(uri, id_column).filter(of_ids)).num_rows
    ]
    if not by_file:
        return uris, pa.table({name: [] for name in (id_column, *FACTS, "row_group", "row", "file")})
    return uris, newest_ok_by(pa.concat_tables(by_file), [id_column])


def _rows_of(uri: str, id_column: str) -> pa.Table:
    """All rows of one file without their binary values."""
    file = _open_file(uri, os.getpid())
    names = [id_column, *FACTS]
    rows = file.read([name for name in names if name in file.schema_arrow.names], use_threads=False)
    if "commit_order" not in rows.column_names:  # the file is older than the column
        rows = rows.append_column("commit_order", pa.nulls(rows.num_rows, pa.int64())).select(names)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    inside = np.arange(rows.num_rows) - np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    return rows.append_column("row_group", pa.array(groups)).append_column("row", pa.array(inside))


@functools.lru_cache(maxsize=OPEN_FILES)
def _open_file(uri: str, pid: int) -> pq.ParquetFile:
    """An open Parquet file. pid: of this process, so that a forked process opens its own."""
    fs, path = storage.filesystem(uri)
    return pq.ParquetFile(path, memory_map=True) if storage.is_local(uri) else pq.ParquetFile(fs.open(path, "rb"))
