"""Writing to tables: append a block of rows exactly once, append rows again, and compact small files."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError

from tasks.tables import storage
from tasks.tables.committed_ids import CommittedIds, of_process
from tasks.tables.content_ids import content_id
from tasks.tables.delta import TableError, as_dataset, open_table, read_table, table_uri
from tasks.tables.log import CHECKPOINT_INTERVAL
from tasks.tables.newest import newest_by
from tasks.tables.parquet_files import MERGED, commit, merge_files, write_parquet
from tasks.tables.rows import Lineage
from tasks.tables.schemas import BLOB_COLUMNS, ID_COLUMNS, SCHEMAS

COMMIT_TRIES = 20
COMPACT_EVERY = 256  # versions; each adds a small file, and opening a table of a thousand files takes seconds
MERGED_BYTES = 32 * 2**20  # a merged file is smaller; files of more than half of it are not merged again
# With these the cost of a commit does not depend on the number of commits before it: checkpoints hold neither files
# that were merged into others nor old transactions, and entries of the log are removed after a day. Vacuum deletes
# merged files by their age and keeps those of versions that can still be read.
CONFIGURATION = {
    "delta.checkpointInterval": str(CHECKPOINT_INTERVAL),
    "delta.deletedFileRetentionDuration": "interval 0 seconds",
    "delta.setTransactionRetentionDuration": "interval 1 days",
    "delta.logRetentionDuration": "interval 1 days",
}


def append_block(
    root: str,
    table: str,
    rows: Sequence[Mapping[str, object]],
    block_id: str,
    lineage: Lineage,
    others: CommittedIds | None = None,
) -> int:
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
        others: commits of other writers, for an actor whose blocks have no ids in common; None: all commits.

    Returns:
        Number of rows written: 0 if this block, or every row of it, was committed before.

    Raises:
        TableError: a row has an unknown column, or COMMIT_TRIES commits in a row conflicted with others.
    """
    if not rows:
        return 0
    data = _to_arrow(table, rows, lineage)
    writer = others.writer if others else ""
    # The first fails a commit of the same block by another writer at the same time; the second is looked up.
    of_block, of_writer = (
        Transaction(content_id(block_id, lineage.params_hash, part), 1, int(time.time() * 1000))
        for part in ("", writer)
    )
    for attempt in range(COMMIT_TRIES):
        delta = _open_or_create(root, table)
        if others and delta.transaction_version(of_writer.app_id) is not None:
            return 0
        new_rows = _not_committed(delta, table, data, others)
        if not new_rows.num_rows:
            return 0
        if _commit_rows(delta, table, new_rows, writer, [of_block, of_writer] if others else [of_block]):
            if delta.version() % COMPACT_EVERY == 0:  # versions are unique, so only one of several writers compacts
                compact(delta, table)
            return new_rows.num_rows
        time.sleep(0.05 * attempt)
    raise TableError(f"gave up appending to table {table!r} in {root} after {COMMIT_TRIES} conflicting commits")


def _commit_rows(delta: DeltaTable, table: str, rows: pa.Table, writer: str, once: Sequence[Transaction]) -> bool:
    """Write rows to a file and commit it; False, without the file, if another process was first."""
    rows = _with_column(rows, "commit_order", [delta.version() + 1] * rows.num_rows)
    file = None
    try:
        _add_missing_columns(delta, table)
        file = write_parquet(delta.table_uri, table, [rows], writer)
        commit(delta, table, [file], once=once)
    except CommitFailedError:
        if file is not None:
            _remove(storage.join(delta.table_uri, file.path))
        return False
    return True


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


def _not_committed(delta: DeltaTable, table: str, data: pa.Table, others: CommittedIds | None) -> pa.Table:
    """Rows of `data` that are not in the table, with the attempts under which they are appended.

    A row is in the table if its id has a row of the same settings and of the same or a later attempt. A row whose
    attempt is used by other settings gets the next free attempt.
    """
    id_column = ID_COLUMNS[table]
    possible = (others or of_process(delta, table)).may_contain(delta, data[id_column])
    if not possible.any():
        return data
    ids = data[id_column].filter(pa.array(possible)).combine_chunks()
    of_ids = pc.field(id_column).isin(ids)
    committed = as_dataset(delta, table).to_table(columns=[id_column, "attempt", "params_hash"], filter=of_ids)
    if not committed.num_rows:
        return data
    last: dict[str, int] = {}  # newest attempt by id
    last_of_settings: dict[tuple[str, str], int] = {}  # newest attempt by id and settings
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


def append_again(
    root: str, table: str, ids: Sequence[str], lineage: Lineage, condition: pc.Expression | None = None
) -> int:
    """Append the rows of these ids again, as next attempts, so that they become the newest; returns how many.

    A step calls this when it runs with earlier settings and has nothing to compute: the earlier results count again.
    The rows keep their `step` and `step_version`, and get the run and settings of this call.

    Args:
        root: of the tables.
        table: name of the table.
        ids: values of its id column.
        lineage: of the current run and settings.
        condition: on attempts; the newest attempt of an id that meets it is appended. None: no condition.
    """
    if not ids:
        return 0
    id_column = ID_COLUMNS[table]
    attempts = read_table(root, table, where=pc.field(id_column).isin(pa.array(ids, pa.string())), newest=False)
    last = attempts.group_by(id_column).aggregate([("attempt", "max")])
    last_attempt = dict(zip(last[id_column].to_pylist(), last["attempt_max"].to_pylist(), strict=True))
    newest = newest_by(attempts if condition is None else attempts.filter(condition), [id_column])
    of_run = ("run_id", "params_hash", "code_version", "created_at", "commit_order")
    rows = [
        {name: row[name] for name in row if name not in of_run} | {"attempt": last_attempt[row[id_column]] + 1}
        for row in newest.to_pylist()
    ]
    block_id = content_id(table, "again", sorted((row[id_column], row["attempt"]) for row in rows))
    append_block(root, table, rows, block_id, lineage)
    return len(rows)


def _open_or_create(root: str, table: str) -> DeltaTable:
    if (delta := open_table(root, table)) is not None:
        return delta
    with contextlib.suppress(CommitFailedError):  # another process has just created it
        DeltaTable.create(
            table_uri(root, table), schema=SCHEMAS[table], mode="ignore", name=table, configuration=CONFIGURATION
        )
    delta = open_table(root, table)
    assert delta is not None, "it was created above, here or by another process"
    return delta


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
    unknown = set().union(*rows) - set(schema.names)
    if unknown:
        raise TableError(f"table {table!r} has no columns {sorted(unknown)}: add them in tasks/tables/schemas.py")
    columns = {name: [row.get(name, common.get(name)) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)
