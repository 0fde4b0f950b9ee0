"""Reading the tables of a root: overview, rows that match filters, verdicts, and clips joined with other tables.

Nothing here writes. Filters have the form `column<operator>value`; text of a user is never evaluated as code.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from tasks.tables import storage
from tasks.tables.delta import DamagedTableError, TableError, as_dataset, open_table, read_table
from tasks.tables.newest import ORDER, newest_by, newest_ok_by, newest_row
from tasks.tables.rows import SelectionRow
from tasks.tables.schemas import BLOB_COLUMNS, COMMON, ID_COLUMNS, SCHEMAS
from tasks.tables.storage import absolute_root

CLIPS_WITH_SCORES = "clips-with-scores"
OPERATORS = ("!=", "<=", ">=", "=", "<", ">", "~")  # operators of two characters come first, so that they match first
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
        TableError: the folder does not exist, or the URI names one table and the argument another.
    """
    root = absolute_root(uri)
    parent, _, name = root.rpartition("/")
    if parent.endswith("/tables") and name in SCHEMAS:
        if table not in (None, name):
            raise TableError(
                f"{uri} is table {name!r}, and the argument is {table!r}: give the root, or leave the argument out"
            )
        root, table = parent.removesuffix("/tables"), name
    storage.check_readable(root)
    if not storage.exists(storage.join(root, "tables")):
        raise TableError(f"no tables under {root}: expected a root that holds tables/, such as ./pyramid-demo")
    if table not in (None, CLIPS_WITH_SCORES, *SCHEMAS):
        raise TableError(f"there is no table {table!r}: choose from {', '.join((*SCHEMAS, CLIPS_WITH_SCORES))}")
    return root, table


def check_written(root: str, table: str) -> None:
    """Raise an error for a table that does not exist yet: `read_table` would return an empty table.

    Raises:
        TableError: the table has not been written.
    """
    table = "clips" if table == CLIPS_WITH_SCORES else table
    if open_table(root, table) is None:
        raise TableError(f"table {table!r} has not been written under {root} yet: pyramid {WRITERS[table]} writes it")


@dataclass(frozen=True)
class TableFacts:
    """Facts about one table: a line of the overview."""

    table: str
    num_rows: int  # newest attempts
    version: int
    size_bytes: int
    last_write: datetime | None
    statuses: Counter[str]
    damage: str = ""  # a sentence: why the table cannot be read; then there are no other facts


def overview(root: str) -> list[TableFacts]:
    """Facts about every table that has been written."""
    return [facts for table in SCHEMAS if (facts := table_facts(root, table)) is not None]


def table_facts(root: str, table: str) -> TableFacts | None:
    """Facts about one table; None if it has not been written yet."""
    try:
        delta = open_table(root, table)
        if delta is None:
            return None
        rows = read_table(root, table, ["status", "created_at"])
    except DamagedTableError as err:
        return TableFacts(table, 0, -1, 0, None, Counter(), str(err))
    sizes = pa.table(delta.get_add_actions(flatten=True))["size_bytes"]
    return TableFacts(
        table,
        rows.num_rows,
        delta.version(),
        pc.sum(sizes).as_py() or 0,
        pc.max(rows["created_at"]).as_py(),
        Counter(rows["status"].to_pylist()),
    )


def damage_report(root: str) -> list[str]:
    """A sentence for each table that cannot be read."""
    return [facts.damage for facts in overview(root) if facts.damage]


@dataclass(frozen=True)
class Filter:
    """One condition on a column."""

    column: str
    operator: str
    value: str


def parse_filter(text: str) -> Filter:
    """Parse a filter: `status=failed`, `value>=2.5`, `error~truncated` (contains). Quotes around the value are removed.

    Raises:
        TableError: the text has no column or no operator.
    """
    match = re.match(rf"\s*(\w+)\s*({'|'.join(map(re.escape, OPERATORS))})\s*(.*?)\s*$", text)
    if not match:
        raise TableError(
            f"filter {text!r} is not COLUMN OPERATOR VALUE: operators are {' '.join(OPERATORS)} (~ contains)"
        )
    column, operator, value = match.groups()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return Filter(column, operator, value)


def filter_expression(filters: Sequence[Filter], schema: pa.Schema) -> pc.Expression | None:
    """All filters as one expression (joined by and), with values of the types of their columns; None without filters.

    Raises:
        TableError: an unknown column, or a value that cannot be converted to the type of its column.
    """
    condition = None
    for criterion in filters:
        column = criterion.column
        if column not in schema.names:
            raise TableError(f"no column {column!r} to filter on: choose from {', '.join(schema.names)}")
        test = _test(criterion, schema.field(column).type)
        condition = test if condition is None else condition & test
    return condition


def _test(criterion: Filter, kind: pa.DataType) -> pc.Expression:
    column = pc.field(criterion.column)
    if pa.types.is_binary(kind):
        raise TableError(f"column {criterion.column!r} holds bytes and cannot be filtered on")
    if criterion.value == "null" and criterion.operator in ("=", "!="):
        return column.is_null() if criterion.operator == "=" else column.is_valid()
    if pa.types.is_list(kind):
        column = pc.binary_join(column.cast(pa.list_(pa.string())), pa.scalar(", "))
        kind = pa.string()
    if criterion.operator == "~":
        return pc.match_substring(column.cast(pa.string()), criterion.value, ignore_case=True)
    try:
        value = pa.scalar(criterion.value).cast(kind)
    except pa.ArrowInvalid as err:
        raise TableError(f"filter on {criterion.column!r}: {criterion.value!r} is not a {kind}") from err
    tests = {
        "=": column == value,
        "!=": column != value,
        "<": column < value,
        ">": column > value,
        "<=": column <= value,
        ">=": column >= value,
    }
    return tests[criterion.operator]


def select_rows(
    root: str,
    table: str,
    filters: Sequence[Filter] = (),
    columns: Sequence[str] | None = None,
    version: int | None = None,
    limit: int | None = None,
) -> pa.Table:
    """Newest rows of a table or of the joined view; binary columns become their lengths in bytes.

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
    """Raise an error for columns that are not in the schema.

    Raises:
        TableError: a column is unknown; the message lists all columns.
    """
    unknown = [name for name in columns or () if name not in schema.names]
    if unknown:
        raise TableError(f"no column {', '.join(map(repr, unknown))}: choose from {', '.join(schema.names)}")


def _blob_lengths(root: str, table: str, column: str, ids: pa.ChunkedArray, version: int | None) -> pa.ChunkedArray:
    """Length of the values of a binary column for the given ids, bytes; only their row groups are read."""
    delta, id_column = open_table(root, table, version), ID_COLUMNS[table]
    if delta is None:
        return pa.chunked_array([pa.array([], pa.int32())])
    lengths = as_dataset(delta, table).to_table(
        {id_column: pc.field(id_column), "length": pc.binary_length(pc.field(column))},
        filter=pc.field(id_column).isin(ids.combine_chunks()),
    )
    return lengths["length"].take(pc.index_in(ids, value_set=lengths[id_column].combine_chunks()))


def newest_selection(root: str, version: int | None = None) -> str:
    """`params_hash` of the newest selection; empty if there is none."""
    newest = newest_row(read_table(root, "selections", ["params_hash", *ORDER], version), SelectionRow)
    return newest["params_hash"] if newest else ""


def verdicts_of(root: str, selection: str = "", version: int | None = None) -> pa.Table:
    """The newest verdict on each clip of one selection. selection: its `params_hash`; empty: the newest selection."""
    selection = selection or newest_selection(root, version)
    rows = read_table(root, "selections", version=version, where=pc.field("params_hash") == selection)
    return newest_by(rows, ["clip_id"])


def clips_with_scores(root: str) -> pa.Table:
    """One row for each clip: its columns, its scores, its verdict in the newest selection, and its newest caption.

    The column of a score has the name of its scorer. `caption`, `keep`, `drop_reasons`, `bucket` and `split` are null
    for a clip without caption or verdict.
    """
    of_clips = [name for name in SCHEMAS["clips"].names if name not in COMMON]
    clips = read_table(root, "clips", [*of_clips, "status", "error_type", "error"])
    scores = read_table(root, "scores", ["clip_id", "scorer", "value", "status", *ORDER])
    scores = newest_ok_by(scores, ["clip_id", "scorer"])
    scores = scores.filter(pc.field("value").is_valid())  # some scorers have details only
    for scorer in sorted(pc.unique(scores["scorer"]).to_pylist()):
        of_scorer = scores.filter(pc.field("scorer") == scorer)
        clips = left_join(clips, of_scorer, "clip_id", {"value": scorer})
    clips = left_join(clips, verdicts_of(root), "clip_id", {n: n for n in ("keep", "drop_reasons", "bucket", "split")})
    captions = read_table(root, "captions", ["clip_id", "text", "status", *ORDER])
    return left_join(clips, newest_ok_by(captions, ["clip_id"]), "clip_id", {"text": "caption"})


def left_join(left: pa.Table, right: pa.Table, on: str, names: dict[str, str]) -> pa.Table:
    """`left` with columns of `right` appended under new names; null where `right` has no row with the key.

    Keys of `right` must be unique. The join of Arrow itself does not support list columns.
    """
    if not right.num_rows:
        for source, name in names.items():
            left = left.append_column(name, pa.nulls(left.num_rows, right.schema.field(source).type))
        return left
    position = pc.index_in(left[on], value_set=right[on].combine_chunks())
    for source, name in names.items():
        left = left.append_column(name, right[source].take(position))
    return left
