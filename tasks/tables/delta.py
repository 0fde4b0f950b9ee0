"""Delta tables: content ids, exactly-once appends, reads of a pinned version, and what is still to do.

Every table lives at `<root>/tables/<name>`; its columns stand in `schemas`. Rows are only ever appended. A retry
appends a row with `attempt + 1`, and readers see the latest attempt of each id (`newest` says which that is). Columns
may be added to a schema: a table that was written before reads as null there, and gets the column with the next append.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow.dataset import Dataset
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from tasks.tables import storage
from tasks.tables.newest import ORDER, newest_by
from tasks.tables.schemas import COMMON, ID_COLUMNS, SCHEMAS

CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # made once: steps hash ids by the hundred thousand


class TableError(RuntimeError):
    """A table cannot be used as it is; the message says which and what to do."""


@dataclass(frozen=True)
class Lineage:
    """Where a row came from; filled into the common columns of every appended row."""

    run_id: str
    step: str
    step_version: str
    params_hash: str
    code_version: str


def content_id(*parts: object) -> str:
    """32 hex digits of blake2b-128 over the canonical JSON of `parts` (bytes are hashed as they are)."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else CANONICAL.encode(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def crc32(*blobs: bytes | memoryview) -> int:
    """CRC-32 over the blobs one after the other."""
    value = 0
    for blob in blobs:
        value = zlib.crc32(blob, value)
    return value


def ok_row(item: Mapping[str, object], **columns: object) -> dict[str, Any]:
    """A good row made from a step's input item (which carries the attempt)."""
    return {"status": "ok", "attempt": item.get("attempt", 1)} | columns


def bad_row(
    item: Mapping[str, object], error: Exception | tuple[str, str], status: str = "failed", **columns: object
) -> dict[str, Any]:
    """A row for data that could not be used: `error` is (error_type, sentence) or an exception with a `kind`."""
    if isinstance(error, Exception):
        kind, text = getattr(error, "kind", type(error).__name__), str(error)
    else:
        kind, text = error
    return {"status": status, "error_type": kind, "error": text, "attempt": item.get("attempt", 1)} | columns


def table_uri(root: str, table: str) -> str:
    """Where a table lives.

    Raises:
        TableError: no such table name.
    """
    if table not in SCHEMAS:
        raise TableError(f"there is no table {table!r}: the tables are {', '.join(SCHEMAS)}")
    return storage.join(root, "tables", table)


def open_table(root: str, table: str, version: int | None = None) -> DeltaTable | None:
    """The table at a version (newest if None), or None when it has not been written yet.

    Raises:
        TableError: the version does not exist, or the table was written with other column types.
    """
    uri = table_uri(root, table)
    try:
        delta = DeltaTable(uri, version=version)
    except TableNotFoundError:
        return None
    except DeltaError as err:
        if version is None:
            raise
        newest = DeltaTable(uri).version()
        raise TableError(f"table {table!r} has no version {version}: it has 0 to {newest} ({uri})") from err
    _check_columns(delta, table, uri)
    return delta


def _check_columns(delta: DeltaTable, table: str, uri: str) -> None:
    """Refuse a table of another schema version, naming the columns.

    Columns that were added since it was written are none: they read as null, and the next append adds them.
    """
    found = {field.name: field.type for field in pa.schema(delta.schema().to_arrow())}
    missing = [name for name in (ID_COLUMNS[table], *COMMON) if name not in found and name != "commit_order"]
    changed = [
        f"{field.name} ({found[field.name]}, expected {field.type})"
        for field in SCHEMAS[table]
        if field.name in found and found[field.name] != field.type
    ]
    if missing or changed:
        raise TableError(
            f"table {table!r} at {uri} was written by another version of this package: "
            f"missing columns {missing or 'none'}, changed types {changed or 'none'}. "
            "Use the version that wrote it, or start a new root with --root."
        )


def table_version(root: str, table: str) -> int:
    """Newest version, or -1 when the table has not been written."""
    delta = open_table(root, table)
    return -1 if delta is None else delta.version()


def read_table(
    root: str,
    table: str,
    columns: Iterable[str] | None = None,
    version: int | None = None,
    where: pc.Expression | None = None,
    latest: bool = True,
) -> pa.Table:
    """Rows of a table at a version, the latest attempt of each id (all attempts with `latest=False`).

    A table that has not been written yet reads as empty, with its schema.
    `where` is applied to the latest attempts, so that a row which failed after it had succeeded does not come back.
    """
    schema = SCHEMAS[table]
    names = list(columns) if columns is not None else schema.names
    delta = open_table(root, table, version)
    if delta is None:
        return pa.schema([schema.field(name) for name in names]).empty_table()
    id_column, asked = ID_COLUMNS[table], _fields_of(where, schema)
    needed = list(dict.fromkeys([*names, id_column, *ORDER, *asked]))
    # Ids can be looked for in the files already, since all attempts of an id pass together: other blobs stay unread.
    rows = as_dataset(delta, table).to_table(columns=needed, filter=where if asked == [id_column] else None)
    if latest:
        rows = newest_by(rows, [id_column])
    if where is not None:
        rows = rows.filter(where)
    return rows.select(names)


def as_dataset(delta: DeltaTable, table: str) -> Dataset:
    """The files of an open table, to scan; columns that it does not have yet are null.

    Local files are opened by Arrow itself. deltalake's file system is Python, called from Arrow's threads: one that is
    still in such a call when the interpreter ends aborts the process ("terminate called without an active exception").
    """
    uri = delta.table_uri
    own = SubTreeFileSystem(storage.filesystem(uri)[1], LocalFileSystem()) if storage.is_local(uri) else None
    files = delta.to_pyarrow_dataset(filesystem=own)
    added = [field for field in SCHEMAS[table] if field.name not in files.schema.names]
    return files.replace_schema(pa.schema([*files.schema, *added])) if added else files


def _fields_of(where: pc.Expression | None, schema: pa.Schema) -> list[str]:
    """Columns that an expression mentions (Arrow offers no accessor; its text form does)."""
    words = set(re.findall(r"\w+", str(where)))
    return [] if where is None else [name for name in schema.names if name in words]
