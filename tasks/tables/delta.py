"""Delta tables: content ids, exactly-once appends, reads of a pinned version, and what is still to do.

Every table lives at `<root>/tables/<name>`; its columns stand in `schemas`. Rows are only ever appended. A retry
appends a row with `attempt + 1`, and readers see the latest attempt of each id. Columns may be added to a schema: a
table that was written before reads as null there, and gets the column with the next append.
"""

import contextlib
import functools
import hashlib
import json
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from pyarrow.dataset import Dataset
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from tasks.tables import storage
from tasks.tables.schemas import BLOB_COLUMNS, COMMON, ID_COLUMNS, SCHEMAS

BLOB_ROW_GROUP_BYTES = 1_000_000  # from here on one row a row group: a random row is read alone
COMMIT_TRIES = 20
COMPACT_EVERY = 256  # versions: each leaves a small file, and a thousand of them take seconds to open
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # made once: steps hash ids by the hundred thousand
SMALL_ROWS = WriterProperties(compression="ZSTD", compression_level=3)


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


def content_id(*parts: Any) -> str:
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


def ok_row(item: Mapping[str, Any], **columns: Any) -> dict[str, Any]:
    """A good row made from a step's input item (which carries the attempt)."""
    return {"status": "ok", "attempt": item.get("attempt", 1)} | columns


def bad_row(
    item: Mapping[str, Any], error: Exception | tuple[str, str], status: str = "failed", **columns: Any
) -> dict:
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
    missing = [name for name in (ID_COLUMNS[table], *COMMON) if name not in found]
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


def append_block(root: str, table: str, rows: Sequence[Mapping[str, Any]], block_id: str, lineage: Lineage) -> int:
    """Append rows in one atomic commit, exactly once per `block_id`; those that another run has added are left out.

    The check and the commit use the same table handle: a commit of the same block by somebody else in between makes
    this one fail, and the check is made again on the newer version. Two overlapping blocks that are written in the
    same moment are not seen: their rows are there twice, and readers take one.

    Returns:
        How many rows were written: 0 when this block, or each row of it, had been committed before.
    """
    if not rows:
        return 0
    data = _to_arrow(table, rows, lineage)
    once = CommitProperties(app_transactions=[Transaction(block_id, 1)])
    for attempt in range(COMMIT_TRIES):
        delta = _open_or_create(root, table)
        if delta.transaction_version(block_id) is not None:
            return 0
        fresh = _without_known(delta, data, ID_COLUMNS[table])
        if not fresh.num_rows:
            return 0
        try:
            write_deltalake(
                delta,
                fresh,
                mode="append",
                schema_mode=_schema_mode(delta, table),
                writer_properties=_writer_properties(table, fresh),
                commit_properties=once,
            )
            if delta.version() % COMPACT_EVERY == 0:  # of those who append at the same time one alone
                compact(delta, table)
            return fresh.num_rows
        except CommitFailedError:
            time.sleep(0.05 * attempt)
    raise TableError(f"gave up appending to table {table!r} in {root} after {COMMIT_TRIES} conflicting commits")


def compact(delta: DeltaTable, table: str) -> None:
    """Rewrite the small files of a table as few; its rows stay, and so do its earlier versions until they are vacuumed.

    Others may append meanwhile. Tables of large values are left alone: their files are laid out for reading one row.
    """
    if table in BLOB_COLUMNS:
        return
    with contextlib.suppress(CommitFailedError):  # somebody else has just done it
        delta.optimize.compact(writer_properties=SMALL_ROWS, max_concurrent_tasks=1)


def compacted_versions(delta: DeltaTable) -> list[int]:
    """The last version before each rewriting of small files: it names all files that versions before it name, too."""
    before = [entry["version"] - 1 for entry in delta.history() if entry["operation"] == "OPTIMIZE"]
    return [version for version in before if _is_readable(delta.table_uri, version)]


def _is_readable(uri: str, version: int) -> bool:
    """Whether the log still reaches back to a version."""
    try:
        DeltaTable(uri, version=version)
    except DeltaError:
        return False
    return True


def _schema_mode(delta: DeltaTable, table: str) -> Literal["merge"] | None:
    """`merge` for a table that lacks columns of this version: the commit that brings the first values adds them.

    Of two writers that would add them at once, the second meets a conflict and finds them there when it tries again.

    Raises:
        TableError: the table has columns that this version does not know.
    """
    found = {field.name for field in delta.schema().fields}
    if unknown := sorted(found - set(SCHEMAS[table].names)):
        raise TableError(
            f"table {table!r} at {delta.table_uri} has the columns {unknown}, which this version of the package does "
            "not know: a later one wrote it. Use that version, or start a new root with --root."
        )
    return "merge" if len(found) < len(SCHEMAS[table]) else None


def _without_known(delta: DeltaTable, data: pa.Table, id_column: str) -> pa.Table:
    """Rows whose id and attempt the table lacks. A process reads each of its files once: later commits are cheap."""
    files = [_keys(uri, id_column) for uri in delta.file_uris()]
    if not files:
        return data
    known = pa.concat_tables(files)
    known = known.filter(pc.field(id_column).isin(data[id_column].combine_chunks()))
    there = set(zip(known[id_column].to_pylist(), known["attempt"].to_pylist(), strict=True))
    keys = zip(data[id_column].to_pylist(), data["attempt"].to_pylist(), strict=True)
    return data.filter(pa.array([key not in there for key in keys])) if there else data


@functools.cache
def _keys(uri: str, id_column: str) -> pa.Table:
    """Id and attempt of the rows of one Parquet file, which never changes."""
    fs, path = storage.filesystem(uri)
    with fs.open(path) as file:
        return pq.read_table(file, columns=[id_column, "attempt"])


def append_again(root: str, table: str, ids: Sequence[str], lineage: Lineage) -> int:
    """Append the rows of these ids once more, as their next attempts, so that they are the newest; returns how many.

    This is how a step that went back to earlier settings, and had nothing to compute, says which results count now.
    """
    if not ids:
        return 0
    found = read_table(root, table, where=pc.field(ID_COLUMNS[table]).isin(pa.array(ids, pa.string()))).to_pylist()
    fresh = ("run_id", "code_version", "created_at")
    rows = [{name: row[name] for name in row if name not in fresh} | {"attempt": row["attempt"] + 1} for row in found]
    block_id = content_id(table, "again", sorted((row[ID_COLUMNS[table]], row["attempt"]) for row in rows))
    append_block(root, table, rows, block_id, lineage)
    return len(rows)


def _open_or_create(root: str, table: str) -> DeltaTable:
    delta = open_table(root, table)
    if delta is not None:
        return delta
    return DeltaTable.create(table_uri(root, table), schema=SCHEMAS[table], mode="ignore", name=table)


def _to_arrow(table: str, rows: Sequence[Mapping[str, Any]], lineage: Lineage) -> pa.Table:
    """Rows as Arrow with the common columns filled in; an unknown column is our bug and says so."""
    schema = SCHEMAS[table]
    common = asdict(lineage) | {
        "created_at": datetime.now(UTC),
        "attempt": 1,
        "status": "ok",
        "error_type": "",
        "error": "",
    }
    full = [common | dict(row) for row in rows]
    unknown = {name for row in full for name in row} - set(schema.names)
    if unknown:
        raise TableError(f"table {table!r} has no columns {sorted(unknown)}: add them in tasks/tables/schemas.py")
    return pa.Table.from_pylist(full, schema=schema)


def _writer_properties(table: str, data: pa.Table) -> WriterProperties:
    blobs = BLOB_COLUMNS.get(table, ())
    if not blobs:
        return SMALL_ROWS
    row_bytes = data.nbytes / max(1, data.num_rows)
    plain = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
    return WriterProperties(
        compression="UNCOMPRESSED",
        max_row_group_size=1
        if row_bytes >= BLOB_ROW_GROUP_BYTES
        else max(1, int(4 * BLOB_ROW_GROUP_BYTES // row_bytes)),
        column_properties=dict.fromkeys(blobs, plain),
    )


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
    needed = list(dict.fromkeys([*names, id_column, "attempt", "created_at", *asked]))
    # Ids can be looked for in the files already, since all attempts of an id pass together: other blobs stay unread.
    rows = as_dataset(delta, table).to_table(columns=needed, filter=where if asked == [id_column] else None)
    if latest:
        rows = latest_attempts(rows, id_column)
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


def latest_attempts(rows: pa.Table, id_column: str) -> pa.Table:
    """Keep one row an id: the highest attempt, the newest of equals; the order of the table is kept."""
    if len(rows[id_column].unique()) == rows.num_rows:
        return rows
    position = pa.array(range(rows.num_rows))
    keyed = rows.select([id_column, "attempt", "created_at"]).append_column("position", position)
    ordered = keyed.sort_by([("attempt", "ascending"), ("created_at", "ascending")])
    last = ordered.group_by(id_column, use_threads=False).aggregate([("position", "last")])
    return rows.take(last["position_last"].combine_chunks().sort())


@dataclass(frozen=True)
class Pending:
    """What is left to do of the wanted ids: id -> attempt number, and how many were done before."""

    attempts: dict[str, int]
    num_done: int

    def items(self, wanted: Iterable[Mapping[str, Any]], id_column: str) -> list[dict[str, Any]]:
        """The wanted items that are pending, each with its attempt."""
        return [
            dict(item) | {"attempt": self.attempts[item[id_column]]}
            for item in wanted
            if item[id_column] in self.attempts
        ]


def pending(root: str, table: str, wanted: Iterable[str], retry_failed: bool = False) -> Pending:
    """Anti-join: wanted ids without a committed row (or, with `retry_failed`, whose latest row failed)."""
    rows = read_table(root, table, [ID_COLUMNS[table], "status", "attempt"])
    committed = {
        row_id: (status, attempt)
        for row_id, status, attempt in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True)
    }
    wanted = list(dict.fromkeys(wanted))
    attempts: dict[str, int] = {}
    for row_id in wanted:
        status, attempt = committed.get(row_id, ("", 0))
        if not status or (retry_failed and status == "failed"):
            attempts[row_id] = attempt + 1
    return Pending(attempts, len(wanted) - len(attempts))
