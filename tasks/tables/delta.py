"""Delta tables, opened and read at a pinned version.

Every table is at `<root>/tables/<name>`; `schemas` has its columns. Rows are only appended, never changed. A retry
appends a row with `attempt + 1`, and readers take the newest attempt of each id (defined in `newest`). A column may be
added to a schema: it is null in rows of an older table, and the next append adds it to the table.
"""

import re
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow.dataset import Dataset, FileSystemDataset, ParquetFileFormat, ParquetFragmentScanOptions
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from tasks.tables import storage
from tasks.tables.log import log_damage, log_folder, newest_damage
from tasks.tables.newest import ORDER, newest_by
from tasks.tables.parquet_files import damage, parquet_files
from tasks.tables.root_paths import with_uris_inside
from tasks.tables.schemas import BLOB_COLUMNS, COMMON, FIXED_COLUMNS, ID_COLUMNS, SCHEMAS


class TableError(RuntimeError):
    """A table cannot be used; the message says which one, and what to do."""


class DamagedTableError(TableError, ValueError):
    """Files of a table are missing or damaged; the message names one, and the command that says what can be saved."""


def table_uri(root: str, table: str) -> str:
    """URI of a table.

    Raises:
        TableError: no table has this name.
    """
    if table not in SCHEMAS:
        raise TableError(f"there is no table {table!r}: the tables are {', '.join(SCHEMAS)}")
    return storage.join(root, "tables", table)


def open_table(root: str, table: str, version: int | None = None) -> DeltaTable | None:
    """The table at a version (None: the newest); None if it has not been written yet, or at version -1.

    Raises:
        TableError: the version does not exist, or the table was written with other column types.
        DamagedTableError: the log of the table is damaged.
    """
    uri = table_uri(root, table)
    if version is not None and version < 0:
        return None
    try:
        delta = _opened(uri, version)
        # A table is created before its first file is written: if there are files, another process created it just now.
        if delta is None and parquet_files(uri):
            delta = _opened(uri, version)
            if delta is None:
                raise _damaged(root, table, f"{log_folder(uri)} is missing")
    except DeltaError as err:
        if damages := log_damage(uri):
            raise _damaged(root, table, str(damages[0])) from err
        if version is None:
            raise _damaged(root, table, str(err).partition("\n")[0]) from err
        newest = DeltaTable(uri).version()
        raise TableError(f"table {table!r} has no version {version}: it has 0 to {newest} ({uri})") from err
    if delta is not None:
        if lost := newest_damage(uri, delta.version()):
            raise _damaged(root, table, str(lost))
        _check_columns(delta, table, uri)
    return delta


def _opened(uri: str, version: int | None) -> DeltaTable | None:
    """The table at a version; None if it has no log."""
    try:
        return DeltaTable(uri, version=version)
    except TableNotFoundError:
        return None


def _damaged(root: str, table: str, problem: str) -> DamagedTableError:
    """The error about a damaged table. problem: a clause that names the file."""
    return DamagedTableError(
        f"table {table!r} is damaged: {problem}. To list all damage: pyramid manifest verify {root}; "
        f"to bring back what can be: pyramid manifest repair {root}"
    )


def _check_columns(delta: DeltaTable, table: str, uri: str) -> None:
    """Raise TableError for a table whose columns do not match the schema; the message names them.

    Columns that were added to the schema later may be missing: they read as null, and the next append adds them.
    """
    types = {field.name: field.type for field in pa.schema(delta.schema().to_arrow())}
    missing = [name for name in (ID_COLUMNS[table], *COMMON) if name not in types and name != "commit_order"]
    changed = [
        f"{field.name} ({types[field.name]}, expected {field.type})"
        for field in SCHEMAS[table]
        if field.name in types and types[field.name] != field.type
    ]
    if missing or changed:
        raise TableError(
            f"table {table!r} at {uri} was written by another version of this package: "
            f"missing columns {missing or 'none'}, changed types {changed or 'none'}. "
            "Use the version that wrote it, or start a new root with --root."
        )


def table_version(root: str, table: str) -> int:
    """Newest version; -1 if the table has not been written."""
    delta = open_table(root, table)
    return -1 if delta is None else delta.version()


def read_table(
    root: str,
    table: str,
    columns: Iterable[str] | None = None,
    version: int | None = None,
    where: pc.Expression | None = None,
    newest: bool = True,
) -> pa.Table:
    """Rows of a table at a version: the newest attempt of each id, or all attempts with `newest=False`.

    A table that has not been written yet reads as an empty table with its schema. `where` is applied after the newest
    attempts are chosen: an earlier ok attempt of a row whose newest attempt failed is not returned. URIs of media and
    models that lead out of the root are marked (`tasks.tables.root_paths`), so that no reader opens them.
    """
    schema = SCHEMAS[table]
    names = list(columns) if columns is not None else schema.names
    delta = open_table(root, table, version)
    if delta is None:
        return pa.schema([schema.field(name) for name in names]).empty_table()
    id_column, filtered = ID_COLUMNS[table], _fields_of(where, schema)
    needed = list(dict.fromkeys([*names, *filtered, *([id_column, *ORDER] if newest else [])]))
    # A filter on fixed columns keeps or drops all attempts of an id, so it can run on the files.
    on_files = not newest or set(filtered) <= {id_column, *FIXED_COLUMNS.get(table, ())}
    try:
        rows = as_dataset(delta, table).to_table(columns=needed, filter=where if on_files else None)
    except (OSError, pa.ArrowInvalid) as err:
        raise _damaged(root, table, next(iter(damaged_files(delta, table not in BLOB_COLUMNS)), str(err))) from err
    if newest:
        rows = newest_by(rows, [id_column])
    if where is not None and not on_files:
        rows = rows.select(list(dict.fromkeys([*names, *filtered]))).filter(where)
    return with_uris_inside(root, table, rows.select(names))


def as_dataset(delta: DeltaTable, table: str) -> Dataset:
    """The files of an open table as an Arrow dataset; columns that the table does not have yet are null.

    Local files are opened by Arrow itself. The file system of deltalake is Python code that threads of Arrow call: a
    thread in such a call when the interpreter exits aborts the process ("terminate called without an active
    exception"). Every page that is read is compared with its checksum.
    """
    uri = delta.table_uri
    local_files = SubTreeFileSystem(storage.filesystem(uri)[1], LocalFileSystem()) if storage.is_local(uri) else None
    files = delta.to_pyarrow_dataset(filesystem=local_files)
    added = [field for field in SCHEMAS[table] if field.name not in files.schema.names]
    checked = ParquetFileFormat(
        default_fragment_scan_options=ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
    )
    # A file is left out by the range of its ids alone: the expressions of deltalake are null for a column without
    # a range, and then every filter on the column leaves out the file.
    actions = pa.table(delta.get_add_actions(flatten=True))
    ranges = [actions[name].to_pylist() if name in actions.column_names else [] for name in _range_of(table)]
    of_path = {path: bounds for path, *bounds in zip(actions["path"].to_pylist(), *ranges, strict=False)}
    fragments = [
        checked.make_fragment(file.path, files.filesystem, _within(table, *of_path.get(file.path, (None, None))))
        for file in files.get_fragments()
    ]
    return FileSystemDataset(fragments, pa.schema([*files.schema, *added]), checked, files.filesystem)


def _range_of(table: str) -> tuple[str, str]:
    """Columns of the add actions of a table with the least and the greatest id of a file."""
    return f"min.{ID_COLUMNS[table]}", f"max.{ID_COLUMNS[table]}"


def _within(table: str, least: str | None, most: str | None) -> pc.Expression | None:
    """Condition that every row of a file with this range of ids meets; None without a range."""
    row_id = pc.field(ID_COLUMNS[table])
    return None if least is None or most is None else (row_id >= least) & (row_id <= most)


def damaged_files(delta: DeltaTable, every_byte: bool = True) -> list[str]:
    """One message for each missing or damaged file of an open table.

    every_byte: compare checksums of the bytes; otherwise only sizes.
    """
    sizes = parquet_files(delta.table_uri)
    files = pa.table(delta.get_add_actions(flatten=True)).select(["path", "size_bytes"]).to_pylist()
    problems = (
        damage(storage.join(delta.table_uri, file["path"]), sizes.get(file["path"]), file["size_bytes"], every_byte)
        for file in files
    )
    return [problem for problem in problems if problem]


def _fields_of(where: pc.Expression | None, schema: pa.Schema) -> list[str]:
    """Columns in an expression, read from its text, since Arrow has no accessor for them."""
    words = set(re.findall(r"\w+", str(where)))
    return [] if where is None else [name for name in schema.names if name in words]
