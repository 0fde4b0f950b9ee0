"""Lists of videos: detection of their format from their content, and their entries.

A list is text, CSV, TSV, JSON lines, JSON or Parquet, and may be compressed. The columns determine the format of the
rows.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from tasks.sources.list_formats import BadEntry, Columns, Entry, Row, RowFormat, lower, renamed, row_format
from tasks.sources.list_rows import (
    COMPRESSED,
    csv_rows,
    delimiter_of,
    json_lines,
    json_row,
    json_rows,
    list_text,
    parquet_list,
    text_rows,
    unpacked,
)
from tasks.tables import storage
from tasks.tables.plain_text import MAX_VALUE, cut, shown
from tasks.tables.web_hosts import Allowed

HEAD_BYTES = 64 * 2**10
LISTS = (".txt", ".csv", ".tsv", ".jsonl")  # suffixes of files that are lists whatever they contain
MAX_CELL = 2**20  # most characters or values of a cell
MAX_NAME = 4096  # most characters of a path or URI


def list_kind(uri: str, head: bytes | None = None) -> str:
    """Kind of a file by its first bytes: `parquet`, `tar`, `jsonl`, `json`, `csv`, `tsv`, `txt`; "" for a single video.

    Text without the columns of a table is a list only if the suffix of the file is in LISTS.

    head: the first HEAD_BYTES of the file; None: they are read.
    """
    head = _head(uri) if head is None else head
    if head[:4] == b"PAR1":
        return "parquet"
    if head[257:262] == b"ustar":
        return "tar"
    suffix = _suffix(uri)
    if uri.lower().endswith(tuple(COMPRESSED)):
        try:
            head = unpacked(uri, head, most=HEAD_BYTES)
        except OSError:  # not compressed, or damaged: reading it later says so
            return suffix[1:] if suffix in LISTS else ""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        if suffix in LISTS:
            return suffix[1:]
        if len(head) < HEAD_BYTES or err.start < HEAD_BYTES - 4:  # otherwise the end of the head splits a character
            return ""
        text = head[: err.start].decode("utf-8-sig")
    if "\0" in text and suffix not in LISTS:
        return ""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if suffix == ".json" or (suffix == ".jsonl" and first.lstrip().startswith("[")):
        return "json" if first.lstrip().startswith(("[", "{")) else ""
    if first.lstrip().startswith("{"):
        return "jsonl" if suffix in LISTS or json_row(first) else ""
    if delimiter := delimiter_of(first):
        # A .txt list of paths may start with a file called "path"; such a file is a table only with a delimiter.
        kind = "tsv" if delimiter == "\t" else "csv"
        return kind if suffix != ".txt" or delimiter in first else "txt"
    return suffix[1:] if suffix in LISTS else ""


def _suffix(uri: str) -> str:
    path = uri.partition("?")[0] if "://" in uri else uri
    name = path.lower()
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return PurePosixPath(name).suffix


def _head(uri: str) -> bytes:
    """First bytes of a regular file; empty if it cannot be read: reading it later gives its row the error."""
    try:
        fs, path = storage.filesystem(uri)
        if storage.is_local(uri) and not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with fs.open(path, "rb", block_size=HEAD_BYTES) as file:
            data = file.read(HEAD_BYTES)
    except Exception:  # each file system has its own exceptions
        return b""
    assert isinstance(data, bytes), "opened in binary mode"
    return data


def read_list(
    uri: str, kind: str, hosts: Allowed = (), columns: Columns | None = None
) -> tuple[RowFormat, Iterator[Entry | BadEntry]]:
    """The format and the entries of a list.

    kind: one of `list_kind`, but not `tar`. hosts: as `storage.filesystem`. columns: of the user, as
    `list_formats.renamed`.

    Raises:
        ValueError: the list cannot be read, or no column names videos.
    """
    if kind == "parquet":
        names, rows = parquet_list(uri, hosts)
    else:
        text = list_text(uri, hosts)
        read = {"txt": text_rows, "csv": csv_rows, "tsv": csv_rows, "jsonl": json_lines, "json": json_rows}[kind]
        names, rows = read(text, uri)
    columns = columns or {}
    if missing := [name for name in columns.values() if name not in names]:
        raise ValueError(f"list {uri} has no column {missing[0]!r} (ingest.columns): it has {shown(list(names))}")
    form = row_format([*names, *(["uri"] if "media" in columns else [])])
    if form is None:
        raise ValueError(
            f"list {uri} has no column 'uri' or 'path', nor another that names videos: its first line is "
            f"{shown(list(names))}. Say which column does, e.g. --set ingest.columns='{{media: NAME, text: NAME}}'"
        )
    return form, (_entry(form, row, f"list {uri}, {place}", columns) for place, row in rows)


def _entry(form: RowFormat, row: Row | BadEntry, place: str, columns: Columns) -> Entry | BadEntry:
    if isinstance(row, BadEntry):
        return row
    row = lower(renamed(row, columns) if columns else row)
    form = row_format(list(row)) or form  # JSON lines may have different keys
    for column, value in row.items():
        if isinstance(value, str | bytes | list | dict) and len(value) > MAX_CELL:
            error = f"{place}: the column {cut(str(column), MAX_VALUE)!r} has more than {MAX_CELL} characters or values"
            return BadEntry(shown(value), error)
    text = cut(",".join("" if value is None else str(value).strip() for value in row.values()), MAX_VALUE)
    try:
        entry = form.entry(row)
    # A literal or a number may be deeper or larger than Python can compute with.
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, ArithmeticError, LookupError) as err:
        return BadEntry(text, f"{place}: {cut(str(err), MAX_VALUE)}; expected a row of {form.name}")
    if entry and max(len(entry.name), len(entry.url)) > MAX_NAME:
        return BadEntry(text, f"{place}: the name of the video has more than {MAX_NAME} characters")
    column = next((name for name in form.media if name in row), form.media[0])
    return entry or BadEntry(text, f"{place}: the column {column!r} is empty, or is not text")
