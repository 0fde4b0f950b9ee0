"""Rows of a list, from each kind of file that lists are kept in."""

import csv
import io
import json
import os

import pyarrow as pa

from tasks.sources.list_formats import BadEntry, NumberedRows, Rows, row_format
from tasks.tables import storage
from tasks.tables.plain_text import MAX_VALUE, cut, shown
from tasks.tables.web_hosts import Allowed

DELIMITERS = (",", "\t", ";", "|")
REST = "\0"  # key of the cells of a row beyond the named columns
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
MAX_LIST_BYTES = 4 * 2**30  # of a list that is unpacked


def list_text(uri: str, hosts: Allowed) -> str:
    """Text of a list, unpacked if its name ends in .gz or .zst. hosts: as `storage.filesystem`.

    Raises:
        ValueError: the list cannot be read, or is not UTF-8.
    """
    try:
        return unpacked(uri, storage.read_bytes(uri, hosts=hosts)).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ValueError(f"list {uri} is not UTF-8 ({err.reason} at byte {err.start}): save it as UTF-8") from err
    except OSError as err:
        raise ValueError(f"list {uri} cannot be read: {err.strerror or err}") from err


def unpacked(uri: str, data: bytes, most: int | None = None) -> bytes:
    """Content of a file whose suffix may be one of COMPRESSED. most: bytes to return; None: all.

    Raises:
        ValueError: it is larger than MAX_LIST_BYTES.
        OSError: it is damaged.
    """
    method = next((name for suffix, name in COMPRESSED.items() if uri.lower().endswith(suffix)), "")
    if not method:
        return data
    stream = pa.CompressedInputStream(pa.BufferReader(data), method)
    content = stream.read(most or MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise ValueError(f"list {uri} has more than {MAX_LIST_BYTES} bytes when it is unpacked: divide it")
    return content


def text_rows(text: str, uri: str) -> Rows:
    """One path or URI a line; lines that begin with # are comments, unless a file beside the list has that name."""
    folder = os.path.dirname(uri) if storage.is_local(uri) else ""
    lines = (
        line.strip()
        for line in io.StringIO(text, newline=None)
        if not line.startswith("#") or (folder and os.path.isfile(os.path.join(folder, line.strip())))
    )
    return ["path"], ((line, {"path": line}) for line in lines if line)


def csv_rows(text: str, uri: str) -> Rows:
    """Rows of a table whose first line has the names of the columns, with any of DELIMITERS between them."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = delimiter_of(first) or ","
    table = io.StringIO(text, newline="")
    reader = csv.DictReader(table, restkey=REST, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        reader.fieldnames = names = [name.strip() for name in reader.fieldnames or ()]
    except csv.Error as err:
        raise ValueError(f"list {uri}, line 1: {err}") from err

    def rows() -> NumberedRows:
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as err:
                # The DictReader's own line_num is that of the row before, the reader's that at which it gave up.
                number, last = reader.line_num + 1, reader.reader.line_num
                is_open = "unexpected end" in str(err) and last > number
                reason = (
                    f"a quotation mark is not closed; {last - number} further lines are lost" if is_open else str(err)
                )
                number = number if is_open else last
                yield "", BadEntry(f"line {number}", f"list {uri}, line {number}: {reason}")
                continue
            number = reader.line_num
            if REST in row or None in row.values():
                cells = len(names) + len(row[REST]) if REST in row else sum(v is not None for v in row.values())
                error = f"list {uri}, line {number}: {cells} cells, expected {len(names)} as in the first line"
                yield f"line {number}", BadEntry(f"line {number}", error + "; put a text with commas in quotes")
                continue
            yield f"line {number}", row

    return names, rows()


def delimiter_of(line: str) -> str:
    """The delimiter with which the first line of a table has the columns of a known format; "" if none."""
    return next((mark for mark in DELIMITERS if row_format(names_of(line, mark))), "")


def names_of(line: str, delimiter: str) -> list[str]:
    """Cells of the first line of a table."""
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:
        return []


def json_lines(text: str, uri: str) -> Rows:
    """One JSON object a line."""
    numbered = enumerate(io.StringIO(text, newline=None), 1)
    lines = [(number, line.strip(), json_row(line)) for number, line in numbered if line.strip()]
    if lines and not any(row for _, _, row in lines):
        number, line, _ = lines[0]
        raise ValueError(f'list {uri}, line {number}: expected an object such as {{"path": "…"}}, got {line[:80]!r}')
    first = list(lines[0][2]) if lines else ["path"]
    names = next((list(row) for _, _, row in lines if row_format(list(row))), first)

    def rows() -> NumberedRows:
        for number, line, row in lines:
            error = f'list {uri}, line {number}: expected {{"uri": "…"}} or {{"path": "…"}}, got {shown(line)}'
            yield f"line {number}", row if row_format(list(row)) else BadEntry(cut(line, MAX_VALUE), error)

    return names, rows()


def json_row(line: str) -> dict[str, object]:
    """The JSON object of a line; empty if the line is not a JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def json_rows(text: str, uri: str) -> Rows:
    """Rows of a JSON file: an array of objects, or a map from names of videos to captions or objects.

    A map may hold one array of objects, such as {"info": …, "data": […]}.

    Raises:
        ValueError: the file is not JSON, or is neither of these.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ValueError(f"list {uri} is not JSON: {err}") from err
    if isinstance(content, dict):
        arrays = [value for value in content.values() if isinstance(value, list) and any(map(_is_row, value))]
        content = arrays[0] if len(arrays) == 1 else [_of_map(name, value) for name, value in content.items()]
    rows = [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []
    if not rows:
        raise ValueError(f'list {uri} is neither an array such as [{{"path": "…", "caption": "…"}}] nor a map of names')

    def numbered() -> NumberedRows:
        for number, row in enumerate(content, 1):
            error = f"list {uri}, entry {number}: no column names a video in {shown(row)}"
            is_row = isinstance(row, dict) and row_format(list(row)) is not None
            bad = BadEntry(cut(str(row), MAX_VALUE), error)
            yield f"entry {number}", row if is_row and isinstance(row, dict) else bad

    names = next((list(row) for row in rows if row_format(list(row))), list(rows[0]))
    return names, numbered()


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and row_format(list(value)) is not None


def _of_map(name: str, value: object) -> object:
    """Row of an entry of a map from the name of a video to its caption, its captions, or an object."""
    if isinstance(value, str | list):
        return {"path": name, "caption": value}
    return {"path": name} | value if isinstance(value, dict) else None


def parquet_list(uri: str, hosts: Allowed) -> Rows:
    """Rows of a Parquet file. hosts: as `storage.filesystem`."""
    from tasks.sources.parquet_rows import UNREADABLE, column_names, parquet_rows

    def rows() -> NumberedRows:
        number = 0
        try:
            for number, row in enumerate(parquet_rows(uri, hosts), 1):
                yield f"row {number}", row
        except UNREADABLE as err:
            place = f"row {number + 1}"
            error = f"list {uri}, {place}: this row and those after it cannot be read: {cut(str(err), 500)}"
            yield place, BadEntry(place, error)

    return column_names(uri, hosts), rows()
