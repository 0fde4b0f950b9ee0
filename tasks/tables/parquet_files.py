"""Parquet files of tables: written with checksums, merged, and checked.

Every page has a checksum, which each read of a table verifies. The name of a file ends in the CRC-32 of all its bytes,
so that `manifest verify` finds a changed bit anywhere in it, and a file whose log entry is lost can be recognised.
"""

import contextlib
import json
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.transaction import AddAction, RemoveAction

from tasks.tables import storage
from tasks.tables.schemas import BLOB_COLUMNS, SCHEMAS

BLOB_ROW_GROUP_BYTES = 1_000_000  # a larger row is a row group of its own, so that it can be read alone
BOUND_LENGTH = 32  # characters of a text in the statistics of a column
MAX_CHARACTER = "\U0010ffff"
ROW_GROUP_BYTES = 64 * 2**20  # in memory, of rows without blobs
NAME = re.compile(r"(?P<writer>[0-9a-f]{32})-[0-9a-f]{16}-(?P<crc32>[0-9a-f]{8})\.parquet$")
MERGED = "merged"  # key of the commits that merge files
# Expired log entries are removed when files are merged: a search for them at every commit takes longer than the commit.
HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)


def write_parquet(
    folder: str, table: str, parts: Iterable[pa.Table], writer: str = "", data_change: bool = True
) -> AddAction:
    """Write rows as one file in the folder of a table.

    Args:
        folder: URI of the table.
        table: its name.
        parts: the rows, in their order; each part becomes one or more row groups.
        writer: 32 hex digits with which the name of the file begins; empty: random ones.
        data_change: False for a file whose rows were in other files before.

    Returns:
        The action by which a commit adds the file to the table.
    """
    schema, options = SCHEMAS[table], _write_options(table)
    handle, temporary = tempfile.mkstemp(
        suffix=".parquet", prefix=".writing-", dir=storage.filesystem(folder)[1] if storage.is_local(folder) else None
    )
    os.close(handle)
    try:
        with pq.ParquetWriter(temporary, schema, write_page_checksum=True, **options) as file:
            for part in parts:
                file.write_table(part, row_group_size=_row_group_rows(table, part))
        size_bytes, statistics = os.path.getsize(temporary), _statistics(pq.read_metadata(temporary))
        name = f"{writer or uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-{storage.file_crc32(temporary):08x}.parquet"
        storage.publish(temporary, storage.join(folder, name))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return AddAction(name, size_bytes, {}, _now_ms(), data_change, statistics)


def add_action(folder: str, table: str, name: str) -> AddAction:
    """The action by which a commit adds a file that lies in the folder of a table. name: of the file."""
    fs, path = storage.filesystem(storage.join(folder, name))
    with fs.open(path, "rb") as file:
        statistics = _statistics(pq.read_metadata(file))
    return AddAction(name, int(fs.size(path) or 0), {}, _now_ms(), True, statistics)


def _statistics(metadata: pq.FileMetaData) -> str:
    """Statistics of a file as in the log: rows, and for each column nulls and range, by which readers skip files.

    A column without a range must be null in all rows: some readers leave out the file for every filter on it.
    """
    null_count, least, most = {}, {}, {}
    for place in range(metadata.num_columns):
        name = metadata.schema.column(place).path
        parts = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
        if "." in name or not all(part is not None and part.has_null_count for part in parts):
            continue  # a list, or a column of blobs
        null_count[name] = sum(part.null_count for part in parts)
        ranges = [part for part in parts if part.has_min_max]
        if ranges:
            least[name] = _bound(min(part.min for part in ranges))
            most[name] = _bound(max(part.max for part in ranges), MAX_CHARACTER)
        elif null_count[name] < metadata.num_rows:  # every number is NaN
            least[name], most[name] = -sys.float_info.max, sys.float_info.max
    numbers = {"numRecords": metadata.num_rows, "minValues": least, "maxValues": most, "nullCount": null_count}
    return json.dumps(numbers)


def _bound(value: Any, after: str = "") -> Any:
    """A least or greatest value as JSON. Long texts are cut, and the greatest gets the character `after`."""
    if isinstance(value, str):
        return value if len(value) <= BOUND_LENGTH else value[:BOUND_LENGTH] + after
    return value.isoformat() if isinstance(value, datetime) else value


def _write_options(table: str) -> dict:
    """Options of the Parquet writer: large values are stored as they are, so that readers can map them."""
    blobs = BLOB_COLUMNS.get(table, ())
    if not blobs:
        return {"compression": "zstd", "compression_level": 3}
    plain = [name for name in SCHEMAS[table].names if name not in blobs]
    return {"compression": "none", "use_dictionary": plain, "write_statistics": plain}


def _row_group_rows(table: str, rows: pa.Table) -> int:
    row_bytes = max(1, rows.nbytes / max(1, rows.num_rows))
    if table not in BLOB_COLUMNS:
        return max(1, int(ROW_GROUP_BYTES / row_bytes))
    return 1 if row_bytes >= BLOB_ROW_GROUP_BYTES else int(4 * BLOB_ROW_GROUP_BYTES / row_bytes)


def commit(
    delta: DeltaTable,
    table: str,
    added: Sequence[AddAction],
    removed: Sequence[RemoveAction] = (),
    once: Sequence[Transaction] = (),
) -> None:
    """Commit files to an open table.

    Args:
        delta: the open table; afterwards it is at the version of the commit.
        table: its name.
        added: files that `write_parquet` wrote.
        removed: files that are part of the table no longer; they stay on disk for earlier versions.
        once: transactions; of several commits at the same time that have one of them, only one succeeds.

    Raises:
        CommitFailedError: another process committed one of `once`, or removed one of the files.
    """
    delta.create_write_transaction(
        [*added, *removed],
        "append",
        SCHEMAS[table],
        commit_properties=CommitProperties(
            app_transactions=list(once) or None, custom_metadata={MERGED: "true"} if removed else None
        ),
        post_commithook_properties=HOOKS,
    )


def merge_files(delta: DeltaTable, table: str, max_bytes: int) -> None:
    """Write the rows of small files again as files of up to `max_bytes`, in one commit. Rows do not change.

    Raises:
        CommitFailedError: another process has merged one of these files.
        OSError: a file is damaged; nothing is merged.
    """
    groups: list[list[dict]] = [[]]
    room = max_bytes
    files = pa.table(delta.get_add_actions(flatten=True)).select(["path", "size_bytes", "modification_time"])
    for file in files.sort_by([("modification_time", "ascending"), ("path", "ascending")]).to_pylist():
        if file["size_bytes"] > max_bytes / 2:
            continue
        if file["size_bytes"] > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(file)
        room -= file["size_bytes"]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return
    folder = delta.table_uri
    added = [
        write_parquet(folder, table, _row_groups(folder, table, [file["path"] for file in group]), data_change=False)
        for group in groups
    ]
    removed = [RemoveAction(file["path"], False, _now_ms(), file["size_bytes"]) for group in groups for file in group]
    commit(delta, table, added, removed)


def _row_groups(folder: str, table: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of several files, in parts of about ROW_GROUP_BYTES."""
    schema, parts = SCHEMAS[table], []
    for name in names:
        rows = read_parquet(storage.join(folder, name))
        missing = [field for field in schema if field.name not in rows.column_names]
        for field in missing:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        parts.append(rows.select(schema.names).cast(schema))
        if sum(part.nbytes for part in parts) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(parts).combine_chunks()
            parts = []
    if parts:
        yield pa.concat_tables(parts).combine_chunks()


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of one file (None: all); its pages are checked.

    Raises:
        OSError: the file is missing or damaged.
    """
    fs, path = storage.filesystem(uri)
    with fs.open(path, "rb") as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        names = parquet.schema_arrow.names if columns is None else columns
        return parquet.read([name for name in names if name in parquet.schema_arrow.names])


def parquet_files(folder: str) -> dict[str, int]:
    """Size of every Parquet file in the folder of a table, by name, whether it is part of the table or not."""
    fs, path = storage.filesystem(folder)
    infos = fs.ls(path, detail=True) if fs.exists(path) else []
    sizes = {info["name"].rpartition("/")[2]: info["size"] for info in infos if info["type"] == "file"}
    return {name: size for name, size in sizes.items() if name.endswith(".parquet") and not name.startswith(".")}


def damage(uri: str, actual: int | None, expected: int, every_byte: bool) -> str:
    """What is wrong with a file of a table, as a clause; empty if nothing is.

    Args:
        uri: of the file.
        actual: its size in bytes; None: it is missing.
        expected: its size as the log of the table states it.
        every_byte: also compare the checksum in the name with the bytes.
    """
    path = storage.filesystem(uri)[1]
    if actual is None:
        return f"{path} is missing"
    if actual != expected:
        return f"{path} has {actual} bytes, expected {expected}"
    if every_byte and (name := NAME.search(uri)) and (checksum := f"{storage.file_crc32(uri):08x}") != name["crc32"]:
        return f"{path} was changed: its crc32 is {checksum}, expected {name['crc32']}"
    return ""


def _now_ms() -> int:
    return int(time.time() * 1000)
