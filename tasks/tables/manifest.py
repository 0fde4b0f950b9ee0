"""Reading a root: which tables there are, rows that match a filter, and clips joined with all that is known of them.

Nothing here writes. Filters are `column<operator>value`; no text from a user is ever evaluated.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import: pyright sees none of them.

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from tasks.tables import storage
from tasks.tables.delta import TableError, as_dataset, open_table, read_table, table_uri
from tasks.tables.newest import ORDER, newest_by, newest_row
from tasks.tables.schemas import BLOB_COLUMNS, COMMON, ID_COLUMNS, SCHEMAS
from tasks.tables.storage import absolute_root

CLIPS_WITH_SCORES = "clips-with-scores"
OPERATORS = ("!=", "<=", ">=", "=", "<", ">", "~")  # two-character ones first, so that they are found first
WRITERS = {  # the command that writes a table
    **dict.fromkeys(("sources", "videos", "clips", "scores", "embeddings", "duplicates", "selections"), "curate"),
    "captions": "recaption",
    **dict.fromkeys(("latents", "text_features"), "extract"),
    "models": "train-vae",
    "evaluations": "evaluate",
    "generations": "generate",
}


def locate(uri: str, table: str | None = None) -> tuple[str, str | None]:
    """Root and table name from `ROOT [TABLE]` or from the URI of a table itself (`ROOT/tables/NAME`).

    Raises:
        TableError: there is no such folder, or the URI names one table and the argument another.
    """
    root = absolute_root(uri)
    parent, _, name = root.rpartition("/")
    if parent.endswith("/tables") and name in SCHEMAS:
        if table not in (None, name):
            raise TableError(f"{uri} is table {name!r}, and {table!r} was asked for: give the root, or leave it out")
        root, table = parent.removesuffix("/tables"), name
    if not storage.exists(storage.join(root, "tables")):
        raise TableError(f"no tables under {root}: expected a root that holds tables/, such as ./pyramid-demo")
    if table not in (None, CLIPS_WITH_SCORES, *SCHEMAS):
        raise TableError(f"there is no table {table!r}: choose from {', '.join((*SCHEMAS, CLIPS_WITH_SCORES))}")
    return root, table


def check_written(root: str, table: str) -> None:
    """Refuse a table that does not exist yet, which would read as an empty one.

    Raises:
        TableError: nothing has been written to it.
    """
    table = "clips" if table == CLIPS_WITH_SCORES else table
    if open_table(root, table) is None:
        writer = f"pyramid {WRITERS[table]} writes it" if table in WRITERS else "no step writes it yet"
        raise TableError(f"table {table!r} has not been written under {root} yet: {writer}")


@dataclass(frozen=True)
class TableFacts:
    """One line of the overview."""

    table: str
    num_rows: int  # latest attempts
    num_attempts: int
    version: int
    size_bytes: int
    last_write: datetime | None
    statuses: Counter[str]
    damage: str = ""  # what is wrong with a table that cannot be read; rows and statuses are unknown then


def overview(root: str) -> list[TableFacts]:
    """Facts of every table that has been written."""
    return [facts for table in SCHEMAS if (facts := table_facts(root, table)) is not None]


def table_facts(root: str, table: str) -> TableFacts | None:
    """Facts of one table, None when it has not been written yet."""
    delta = open_table(root, table)
    if delta is None:
        return None
    damage, names = "", ["status", "created_at"]
    try:
        rows = read_table(root, table, names)
    except (OSError, ValueError) as err:  # a file that is gone, and one that is no Parquet
        rows = pa.schema([SCHEMAS[table].field(name) for name in names]).empty_table()
        damage = next(iter(damaged_files(root, table)), str(err))
    sizes = pa.table(delta.get_add_actions(flatten=True))["size_bytes"]
    return TableFacts(
        table,
        rows.num_rows,
        delta.count(),
        delta.version(),
        pc.sum(sizes).as_py() or 0,
        pc.max(rows["created_at"]).as_py(),
        Counter(rows["status"].to_pylist()),
        damage,
    )


def damaged_files(root: str, table: str) -> list[str]:
    """Parquet files that the log of a table names and that are gone or of another size, each with what is wrong."""
    delta = open_table(root, table)
    if delta is None:
        return []
    fs, folder = storage.filesystem(table_uri(root, table))
    sizes = {path: info["size"] for path, info in fs.find(folder, detail=True).items()}
    bad = []
    for named in pa.table(delta.get_add_actions(flatten=True)).select(["path", "size_bytes"]).to_pylist():
        path = f"{folder}/{named['path']}"
        if path not in sizes:
            bad.append(f"{path} is gone")
        elif sizes[path] != named["size_bytes"]:
            bad.append(f"{path} has {sizes[path]} bytes, expected {named['size_bytes']}")
    return bad


def damage_report(root: str) -> list[str]:
    """A sentence for each table that cannot be read."""
    return [damage_sentence(root, facts) for facts in overview(root) if facts.damage]


def damage_sentence(root: str, facts: TableFacts) -> str:
    """Which table cannot be read, why, and where to read on."""
    return f"table {facts.table!r} is damaged: {facts.damage}. All that is wrong: pyramid manifest verify {root}"


@dataclass(frozen=True)
class Filter:
    """One condition on a column."""

    column: str
    operator: str
    value: str


def parse_filter(text: str) -> Filter:
    """`status=failed`, `value>=2.5`, `error~truncated` (contains), spaces and quotes around the value allowed.

    Raises:
        TableError: no operator in it.
    """
    found = re.match(rf"\s*(\w+)\s*({'|'.join(map(re.escape, OPERATORS))})\s*(.*?)\s*$", text)
    if not found:
        raise TableError(
            f"filter {text!r} is not COLUMN OPERATOR VALUE: operators are {' '.join(OPERATORS)} (~ contains)"
        )
    column, operator, value = found.groups()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return Filter(column, operator, value)


def filter_expression(filters: Sequence[Filter], schema: pa.Schema) -> pc.Expression | None:
    """All conditions together, values read as the types of their columns.

    Raises:
        TableError: an unknown column, or a value that the column's type cannot hold.
    """
    condition = None
    for one in filters:
        if one.column not in schema.names:
            raise TableError(f"no column {one.column!r} to filter on: choose from {', '.join(schema.names)}")
        test = _test(one, schema.field(one.column).type)
        condition = test if condition is None else condition & test
    return condition


def _test(one: Filter, kind: pa.DataType) -> pc.Expression:
    column = pc.field(one.column)
    if pa.types.is_binary(kind):
        raise TableError(f"column {one.column!r} holds bytes and cannot be filtered on")
    if one.value == "null" and one.operator in ("=", "!="):
        return column.is_null() if one.operator == "=" else column.is_valid()
    if pa.types.is_list(kind):
        column = pc.binary_join(column.cast(pa.list_(pa.string())), pa.scalar(", "))
        kind = pa.string()
    if one.operator == "~":
        return pc.match_substring(column.cast(pa.string()), one.value, ignore_case=True)
    try:
        value = pa.scalar(one.value).cast(kind)
    except pa.ArrowInvalid as err:
        raise TableError(f"filter on {one.column!r}: {one.value!r} is not a {kind}") from err
    tests = {
        "=": column == value,
        "!=": column != value,
        "<": column < value,
        ">": column > value,
        "<=": column <= value,
        ">=": column >= value,
    }
    return tests[one.operator]


def select_rows(
    root: str,
    table: str,
    filters: Sequence[Filter] = (),
    columns: Sequence[str] | None = None,
    version: int | None = None,
    limit: int | None = None,
) -> pa.Table:
    """Latest rows of a table or of the joined view; binary columns become their lengths in bytes.

    Raises:
        TableError: unknown column or version.
    """
    if table == CLIPS_WITH_SCORES:
        if version is not None:
            raise TableError(f"{CLIPS_WITH_SCORES} joins several tables and has no version of its own")
        rows = clips_with_scores(root)
        check_names(columns, rows.schema)
        condition = filter_expression(filters, rows.schema)
        rows = rows if condition is None else rows.filter(condition)
        return rows.select(list(columns) if columns else rows.column_names).slice(0, limit)
    schema = SCHEMAS[table]
    check_names(columns, schema)
    names = list(columns) if columns else schema.names
    blobs = [name for name in names if name in BLOB_COLUMNS.get(table, ())]
    id_column = ID_COLUMNS[table]
    plain = [name for name in dict.fromkeys([*names, id_column]) if name not in blobs]
    rows = read_table(root, table, plain, version, filter_expression(filters, schema)).slice(0, limit)
    for name in blobs:
        lengths = _blob_lengths(root, table, name, rows[id_column], version)
        rows = rows.append_column(name, lengths)
    return rows.select(names)


def check_names(columns: Sequence[str] | None, schema: pa.Schema) -> None:
    """Refuse columns that are not in the schema, naming those that are.

    Raises:
        TableError: at least one is unknown.
    """
    unknown = [name for name in columns or () if name not in schema.names]
    if unknown:
        raise TableError(f"no column {', '.join(map(repr, unknown))}: choose from {', '.join(schema.names)}")


def _blob_lengths(root: str, table: str, column: str, ids: pa.ChunkedArray, version: int | None) -> pa.ChunkedArray:
    """Bytes in a binary column for the given ids; only their row groups are read."""
    delta, id_column = open_table(root, table, version), ID_COLUMNS[table]
    if delta is None:
        return pa.chunked_array([pa.array([], pa.int32())])
    found = as_dataset(delta, table).to_table(
        {id_column: pc.field(id_column), "length": pc.binary_length(pc.field(column))},
        filter=pc.field(id_column).isin(ids.combine_chunks()),
    )
    return found["length"].take(pc.index_in(ids, value_set=found[id_column].combine_chunks()))


def newest_selection(root: str, version: int | None = None) -> str:
    """`params_hash` of the settings that selected last; empty when nothing was selected yet."""
    newest = newest_row(read_table(root, "selections", ["params_hash", *ORDER], version))
    return newest["params_hash"] if newest else ""


def verdicts_of(root: str, selection: str = "", version: int | None = None) -> pa.Table:
    """Rows of one selection (empty: of the newest), the newest verdict on each clip."""
    selection = selection or newest_selection(root, version)
    rows = read_table(root, "selections", version=version, where=pc.field("params_hash") == selection)
    return newest_by(rows, ["clip_id"])


def clips_with_scores(root: str) -> pa.Table:
    """One row a clip: its columns, one column a scorer, the newest selection, and its newest caption.

    Columns of scorers carry the scorer's name; `caption`, `keep`, `drop_reasons`, `bucket` and `split` are null for a
    clip that has none.
    """
    own = [name for name in SCHEMAS["clips"].names if name not in COMMON]
    clips = read_table(root, "clips", [*own, "status", "error_type", "error"])
    numbers = (pc.field("status") == "ok") & pc.field("value").is_valid()  # some scorers only have details
    scores = read_table(root, "scores", ["clip_id", "scorer", "value", *ORDER], where=numbers)
    for scorer in sorted(pc.unique(scores["scorer"]).to_pylist()):
        rows = newest_by(scores.filter(pc.equal(scores["scorer"], scorer)), ["clip_id"])
        clips = left_join(clips, rows, "clip_id", {"value": scorer})
    clips = left_join(clips, verdicts_of(root), "clip_id", {n: n for n in ("keep", "drop_reasons", "bucket", "split")})
    captions = read_table(root, "captions", ["clip_id", "text", *ORDER])
    return left_join(clips, newest_by(captions, ["clip_id"]), "clip_id", {"text": "caption"})


def left_join(left: pa.Table, right: pa.Table, on: str, names: dict[str, str]) -> pa.Table:
    """`left` with columns of `right` (whose keys are unique) appended under new names; null where there is no match.

    Arrow's own join cannot carry list columns.
    """
    if not right.num_rows:
        for source, name in names.items():
            left = left.append_column(name, pa.nulls(left.num_rows, right.schema.field(source).type))
        return left
    position = pc.index_in(left[on], value_set=right[on].combine_chunks())
    for source, name in names.items():
        left = left.append_column(name, right[source].take(position))
    return left
