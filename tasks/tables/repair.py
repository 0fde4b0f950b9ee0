"""Repair of damaged tables: logs that open again, and files of rows that no commit names.

Nothing is deleted: a damaged file of a log is renamed to `NAME.damaged`. Rows of a lost commit come back if their
Parquet file is whole, since its name has its checksum. Versions keep their numbers, since runs recorded them and the
order of rows depends on them.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import json
import tempfile
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.transaction import RemoveAction

from tasks.tables import storage
from tasks.tables.appending import CONFIGURATION
from tasks.tables.delta import DamagedTableError, as_dataset, damaged_files, open_table, table_uri
from tasks.tables.log import LogDamage, entry_name, log_damage, log_folder, recorded_versions
from tasks.tables.parquet_files import add_action, commit, damage, parquet_files, read_parquet
from tasks.tables.schemas import ID_COLUMNS, SCHEMAS


def repair(root: str, table: str, apply: bool = False, give_up_damaged: bool = False) -> Iterator[str]:
    """Yield the repairs that a table needs, one sentence each; with `apply`, carry them out.

    No other process may write to the table meanwhile.

    Args:
        root: of the tables.
        table: its name.
        apply: whether to change the table; otherwise nothing is changed, and the rows of lost commits are not listed
            as long as the log cannot be read.
        give_up_damaged: take missing and damaged Parquet files out of the table, so that the next run computes their
            rows again. The files stay on disk until a vacuum.
    """
    uri = table_uri(root, table)
    files = parquet_files(uri)
    damages = log_damage(uri)
    if files and not storage.exists(storage.join(log_folder(uri), entry_name(0))) and not _has_log(uri):
        newest = max(recorded_versions(root).get(table, (0, ""))[0], _newest_commit(uri, list(files)))
        folder = storage.filesystem(log_folder(uri))[1]
        damages = [LogDamage(f"{folder}/{entry_name(v)}", "is missing", v) for v in range(newest + 1)]
    yield from _mend_log(table, uri, damages, apply)
    try:
        delta = open_table(root, table)
    except DamagedTableError as err:
        if apply:
            yield f"{table}: cannot be repaired: {err}"
        elif damages:
            yield f"{table}: then the files of rows that no commit names are registered"
        return
    if delta is not None:
        yield from _register(delta, table, apply)
        if give_up_damaged:
            yield from _give_up(delta, table, apply)


def _has_log(uri: str) -> bool:
    fs, folder = storage.filesystem(log_folder(uri))
    return fs.exists(folder) and any(path.endswith((".json", ".parquet")) for path in fs.ls(folder, detail=False))


def _last_entry(uri: str) -> int | None:
    """Version of the newest log entry."""
    fs, folder = storage.filesystem(log_folder(uri))
    names = [path.rpartition("/")[2] for path in fs.ls(folder, detail=False)] if fs.exists(folder) else []
    return max((int(name[:20]) for name in names if name.endswith(".json") and name[:20].isdecimal()), default=None)


def _mend_log(table: str, uri: str, damages: Sequence[LogDamage], apply: bool) -> Iterator[str]:
    """Rename damaged files of the log. An entry without files replaces a damaged entry that has later ones."""
    fs, last = storage.filesystem(uri)[0], _last_entry(uri)
    for damaged in damages:
        if fs.exists(damaged.path):
            yield f"{table}: {damaged}: it is renamed to {damaged.path.rpartition('/')[2]}.damaged"
            if apply:
                fs.mv(damaged.path, f"{damaged.path}.damaged")
    empty = [damaged.version for damaged in damages if damaged.version is not None]
    empty = [version for version in empty if version != last or version == 0]
    if empty:
        yield f"{table}: {len(empty)} versions from {empty[0]} to {empty[-1]} get a log entry without files"
    for version in empty if apply else ():
        content = b"".join(json.dumps(action).encode() + b"\n" for action in _empty_entry(table, version))
        storage.write_bytes(storage.join(log_folder(uri), entry_name(version)), content)


def _empty_entry(table: str, version: int) -> list[dict]:
    """Actions of a log entry without files; version 0 also defines the columns of the table."""
    info = {"commitInfo": {"timestamp": int(time.time() * 1000), "operation": "REPAIR", "operationParameters": {}}}
    if version:
        return [info]
    with tempfile.TemporaryDirectory() as folder:
        DeltaTable.create(folder, schema=SCHEMAS[table], name=table, configuration=CONFIGURATION)
        actions = map(json.loads, storage.read_bytes(f"{folder}/_delta_log/{entry_name(0)}").splitlines())
        return [info, *(action for action in actions if not action.keys() & {"commitInfo"})]


def _register(delta: DeltaTable, table: str, apply: bool) -> Iterator[str]:
    """Add the files to the table that hold rows which it lacks."""
    names, unusable = orphans(delta, table)
    for name, num_rows in names.items():
        yield f"{table}: {name} is registered: {num_rows} rows that no commit names"
    for problem in unusable:
        yield f"{table}: not registered, restore it from a copy or delete it: {problem}"
    if apply and names:
        commit(delta, table, [add_action(delta.table_uri, table, name) for name in names])


def _give_up(delta: DeltaTable, table: str, apply: bool) -> Iterator[str]:
    """Take the missing and damaged files out of the table."""
    problems = damaged_files(delta)
    for problem in problems:
        yield f"{table}: taken out of the table: {problem}"
    if apply and problems:
        files = pa.table(delta.get_add_actions(flatten=True)).select(["path", "size_bytes"]).to_pylist()
        bad = [file for file in files if any(f"/{file['path']} " in problem for problem in problems)]
        removed = [RemoveAction(file["path"], True, int(time.time() * 1000), file["size_bytes"]) for file in bad]
        commit(delta, table, [], removed)


def orphans(delta: DeltaTable, table: str) -> tuple[dict[str, int], list[str]]:
    """Files in the folder of an open table that hold rows which the table lacks.

    A step that was killed before its commit leaves such a file, and so does a lost log entry. Files whose rows are all
    in the table were merged into others, and are no orphans.

    Returns:
        (number of missing rows by name of the file, clauses about files that are damaged).
    """
    folder = delta.table_uri
    active = set(pa.table(delta.get_add_actions(flatten=True))["path"].to_pylist())
    sizes = {name: size for name, size in parquet_files(folder).items() if name not in active}
    problems = {name: damage(storage.join(folder, name), size, size, every_byte=True) for name, size in sizes.items()}
    keys = [ID_COLUMNS[table], "attempt", "params_hash"]
    names: dict[str, int] = {}
    unusable = [problem for problem in problems.values() if problem]
    committed = None
    for name in sorted(sizes, key=lambda name: -sizes[name]):  # merged files are the largest
        if problems[name]:
            continue
        try:
            rows = read_parquet(storage.join(folder, name), keys)
        except (OSError, pa.ArrowException) as err:
            unusable.append(f"{folder}/{name} is not a whole Parquet file ({str(err)[:100]})")
            continue
        committed = as_dataset(delta, table).to_table(columns=keys) if committed is None else committed
        missing = rows.join(committed, keys, join_type="left anti")
        if missing.num_rows:
            names[name] = missing.num_rows
            committed = pa.concat_tables([committed, missing.select(keys).cast(committed.schema)])
    return names, unusable


def _newest_commit(uri: str, names: Sequence[str]) -> int:
    """The greatest `commit_order` in files of a table: about the number of its versions."""
    newest = 0
    for name in names:
        try:
            rows = read_parquet(storage.join(uri, name), ["commit_order"])
        except (OSError, pa.ArrowException):
            continue
        if "commit_order" in rows.column_names:
            newest = max(newest, pc.max(rows["commit_order"]).as_py() or 0)
    return newest
