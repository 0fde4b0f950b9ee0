"""Writing to tables: append a block of rows exactly once, append rows again, and compact small files."""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError

from tasks.tables import storage
from tasks.tables.delta import Lineage, TableError, content_id, open_table, read_table, table_uri
from tasks.tables.newest import newest_by
from tasks.tables.parquet_files import MERGED, commit, merge_files, read_parquet, write_parquet
from tasks.tables.schemas import BLOB_COLUMNS, ID_COLUMNS, SCHEMAS

COMMIT_TRIES = 20
COMPACT_EVERY = 256  # versions; each adds a small file, and opening a table of a thousand files takes seconds
MERGED_BYTES = 32 * 2**20  # a merged file is smaller; files of more than half of it are not merged again
# With these the cost of a commit does not depend on the number of commits before it: checkpoints hold neither files
# that were merged into others nor old transactions, and entries of the log are removed after a day. Vacuum deletes
# merged files by their age and keeps those of versions that can still be read.
CONFIGURATION = {
    "delta.checkpointInterval": "32",
    "delta.deletedFileRetentionDuration": "interval 0 seconds",
    "delta.setTransactionRetentionDuration": "interval 1 days",
    "delta.logRetentionDuration": "interval 1 days",
}


def append_block(root: str, table: str, rows: Sequence[Mapping[str, object]], block_id: str, lineage: Lineage) -> int:
    """Append rows in one atomic commit, exactly once per `block_id` and settings (`lineage.params_hash`).

    Rows that another run committed with the same settings are left out. A row whose id and attempt were committed with
    other settings becomes the next attempt of its id: runs with different settings never hide each other's rows.

    The check and the commit use the same table handle: if another process commits the same block in between, this
    commit fails, and the check is repeated on the newer version. Different blocks that share rows and are committed at
    the same time are not detected: their rows are in the table twice, and readers take one of them (see `newest`).

    Args:
        root: of the tables.
        table: name of the table.
        rows: columns by name; common columns that are missing are filled in.
        block_id: identity of the block.
        lineage: run, step and settings of the rows.

    Returns:
        Number of rows written: 0 if this block, or every row of it, was committed before.

    Raises:
        TableError: a row has an unknown column, or COMMIT_TRIES commits in a row conflicted with others.
    """
    if not rows:
        return 0
    data = _to_arrow(table, rows, lineage)
    once = Transaction(content_id(block_id, lineage.params_hash), 1, int(time.time() * 1000))
    for attempt in range(COMMIT_TRIES):
        delta = _open_or_create(root, table)
        fresh = _not_committed(delta, data, ID_COLUMNS[table])
        if not fresh.num_rows:
            return 0
        fresh = _with_column(fresh, "commit_order", [delta.version() + 1] * fresh.num_rows)
        file = None
        try:
            _add_missing_columns(delta, table)
            file = write_parquet(delta.table_uri, table, [fresh])
            commit(delta, table, [file], once=once)
            if delta.version() % COMPACT_EVERY == 0:  # versions are unique, so only one of several writers compacts
                compact(delta, table)
            return fresh.num_rows
        except CommitFailedError:
            if file is not None:
                _remove(storage.join(delta.table_uri, file.path))
            time.sleep(0.05 * attempt)
    raise TableError(f"gave up appending to table {table!r} in {root} after {COMMIT_TRIES} conflicting commits")


def compact(delta: DeltaTable, table: str) -> None:
    """Merge the small files of a table into few large ones, and remove expired entries of its log.

    Rows do not change, and earlier versions can be read until a vacuum. Other processes may append at the same time.
    Tables with binary columns are not merged: their files are laid out for reads of single rows. A damaged file is
    not merged either; `manifest verify` reports it.
    """
    if table not in BLOB_COLUMNS:
        with contextlib.suppress(CommitFailedError, OSError):  # another process has just merged; or a file is damaged
            merge_files(delta, table, MERGED_BYTES)
    delta.cleanup_metadata()


def compacted_versions(delta: DeltaTable) -> list[int]:
    """The last version before each compaction, if it can be read: its log has all files of the versions before it."""
    before = [entry["version"] - 1 for entry in delta.history() if MERGED in entry]
    return [version for version in before if _is_readable(delta.table_uri, version)]


def _is_readable(uri: str, version: int) -> bool:
    """Whether a version can still be read from the log."""
    try:
        DeltaTable(uri, version=version)
    except DeltaError:
        return False
    return True


def _add_missing_columns(delta: DeltaTable, table: str) -> None:
    """Add the columns of the schema that the table lacks, in a commit of its own.

    Raises:
        CommitFailedError: another process added columns at the same time.
        TableError: the table has columns that are not in the schema.
    """
    names = {field.name for field in delta.schema().fields}
    if unknown := sorted(names - set(SCHEMAS[table].names)):
        raise TableError(
            f"table {table!r} at {delta.table_uri} has the columns {unknown}, which this version of the package does "
            "not have: a later version wrote it. Use that version, or start a new root with --root."
        )
    if missing := [field for field in Schema.from_arrow(SCHEMAS[table]).fields if field.name not in names]:
        delta.alter.add_columns(missing)


def _remove(uri: str) -> None:
    """Delete a file that was written for a commit that failed."""
    fs, path = storage.filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def _not_committed(delta: DeltaTable, data: pa.Table, id_column: str) -> pa.Table:
    """Rows of `data` that are not in the table, with the attempts under which they are appended.

    A row is in the table if its id has a row of the same settings and of the same or a later attempt. A row whose
    attempt is used by other settings gets the next free attempt. A process reads each file once, so that later commits
    are cheap.
    """
    files = [_keys(uri, id_column) for uri in delta.file_uris()]
    if not files:
        return data
    committed = pa.concat_tables(files)
    committed = committed.filter(pc.field(id_column).isin(data[id_column].combine_chunks()))
    if not committed.num_rows:
        return data
    last: dict[str, int] = {}  # latest attempt by id
    last_of_settings: dict[tuple[str, str], int] = {}  # latest attempt by id and settings
    used: set[tuple[str, int]] = set()  # ids with their attempts
    for row_id, attempt, settings in _key_rows(committed, id_column):
        used.add((row_id, attempt))
        last[row_id] = max(attempt, last.get(row_id, 0))
        last_of_settings[row_id, settings] = max(attempt, last_of_settings.get((row_id, settings), 0))
    attempts = [
        0 if last_of_settings.get((row_id, settings), 0) >= attempt
        else last[row_id] + 1 if (row_id, attempt) in used
        else attempt
        for row_id, attempt, settings in _key_rows(data, id_column)
    ]  # fmt: skip
    return _with_column(data, "attempt", attempts).filter(pc.field("attempt") > 0)


def _key_rows(rows: pa.Table, id_column: str) -> Iterator[tuple[str, int, str]]:
    """(id, attempt, params_hash) of each row."""
    return zip(*(rows[name].to_pylist() for name in (id_column, "attempt", "params_hash")), strict=True)


def _with_column(rows: pa.Table, name: str, values: list[int]) -> pa.Table:
    """The rows with new values in one integer column."""
    position = rows.schema.get_field_index(name)
    return rows.set_column(position, rows.schema.field(position), pa.array(values, pa.int64()))


@functools.cache
def _keys(uri: str, id_column: str) -> pa.Table:
    """Id, attempt and settings of each row of one Parquet file; cached, since files never change."""
    return read_parquet(uri, [id_column, "attempt", "params_hash"])


def append_again(root: str, table: str, ids: Sequence[str], lineage: Lineage, made: pc.Expression | None = None) -> int:
    """Append the rows of these ids again, as next attempts, so that they become the newest; returns how many.

    A step calls this when it runs with earlier settings and has nothing to compute: the earlier results count again.
    The rows keep their `step` and `step_version`, and get the run and settings of this call.

    Args:
        root: of the tables.
        table: name of the table.
        ids: values of its id column.
        lineage: of the current run and settings.
        made: condition on attempts; the newest attempt of an id that meets it is appended. None: no condition.
    """
    if not ids:
        return 0
    id_column = ID_COLUMNS[table]
    attempts = read_table(root, table, where=pc.field(id_column).isin(pa.array(ids, pa.string())), latest=False)
    last = attempts.group_by(id_column).aggregate([("attempt", "max")])
    last_attempt = dict(zip(last[id_column].to_pylist(), last["attempt_max"].to_pylist(), strict=True))
    chosen = newest_by(attempts if made is None else attempts.filter(made), [id_column])
    fresh = ("run_id", "params_hash", "code_version", "created_at", "commit_order")
    rows = [
        {name: row[name] for name in row if name not in fresh} | {"attempt": last_attempt[row[id_column]] + 1}
        for row in chosen.to_pylist()
    ]
    block_id = content_id(table, "again", sorted((row[id_column], row["attempt"]) for row in rows))
    append_block(root, table, rows, block_id, lineage)
    return len(rows)


def _open_or_create(root: str, table: str) -> DeltaTable:
    delta = open_table(root, table)
    if delta is not None:
        return delta
    return DeltaTable.create(
        table_uri(root, table), schema=SCHEMAS[table], mode="ignore", name=table, configuration=CONFIGURATION
    )


def _to_arrow(table: str, rows: Sequence[Mapping[str, object]], lineage: Lineage) -> pa.Table:
    """Rows as Arrow, with the common columns filled in. An unknown column is a bug of the step: TableError."""
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
