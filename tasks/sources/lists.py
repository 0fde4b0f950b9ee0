"""Lists of videos: detection of their format from their content, and their entries.

A list is text, CSV, TSV, JSON lines or Parquet. The columns determine the format of the rows.
"""

import ast
import csv
import io
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tasks.tables import storage
from tasks.tables.plain_text import MAX_VALUE, cut, shown
from tasks.tables.web_hosts import Allowed

HEAD_BYTES = 64 * 2**10
LISTS = (".txt", ".csv", ".tsv", ".jsonl")  # suffixes of files that are lists whatever they contain
MAX_CELL = 2**20  # most characters or values of a cell
MAX_NAME = 4096  # most characters of a path or URI
OWN_KEYS = ("start_s", "end_s", "sha256", "md5")  # columns that have the same meaning in every format
VIDEO_HOSTS = ("youtube.com", "youtu.be")  # their URLs lead to pages and not to video files

# Caption of a video or of a span of it: "start_s" and "end_s" (None: of the whole video), "text", and other columns.
Annotation = dict[str, object]
Row = Mapping[str, object]  # cells by column
NumberedRows = Iterator[tuple[str, "Row | BadEntry"]]  # (place in the list, row)
Rows = tuple[Sequence[str], NumberedRows]  # (column names, rows)


@dataclass(frozen=True)
class Entry:
    """One video of a list, with its annotations."""

    name: str  # path or URI, as in the list
    annotations: tuple[Annotation, ...] = ()
    sha256: str = ""
    md5: str = ""
    url: str = ""  # page or file of the published video, if `name` is only a name


@dataclass(frozen=True)
class BadEntry:
    """An entry of a list without a usable file name."""

    text: str
    reason: str


@dataclass(frozen=True)
class RowFormat:
    """Format of the rows of a list.

    columns: a list with all of these columns has this format.
    media: columns with the path, URI or name of the video; the first one with a value counts.
    entry: makes an entry from a row; None if the row names no video.
    from_dataset: the format of a published data set, whose files may be anywhere below media_root.
    """

    name: str
    columns: frozenset[str]
    media: tuple[str, ...]
    entry: Callable[[Row], Entry | None]
    from_dataset: bool = True


def list_kind(uri: str, head: bytes | None = None) -> str:
    """Kind of a file by its first bytes: `parquet`, `tar`, `jsonl`, `csv`, `tsv`, `txt`, or "" for a single video.

    Text without the columns of a table is a list only if the suffix of the file is in LISTS.

    head: the first HEAD_BYTES of the file; None: they are read.
    """
    head = _head(uri) if head is None else head
    if head[:4] == b"PAR1":
        return "parquet"
    if head[257:262] == b"ustar":
        return "tar"
    suffix = _suffix(uri)
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
    if first.lstrip().startswith("{"):
        return "jsonl" if suffix in LISTS or _json_row(first) else ""
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        if row_format(_names(first, delimiter)):
            # A .txt list of paths may start with a file called "path"; such a file is a table only with a delimiter.
            return kind if suffix != ".txt" or delimiter in first else "txt"
    return suffix[1:] if suffix in LISTS else ""


def _suffix(uri: str) -> str:
    path = uri.partition("?")[0] if "://" in uri else uri
    return PurePosixPath(path).suffix.lower()


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


def _names(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:
        return []


def read_list(uri: str, kind: str, hosts: Allowed = ()) -> tuple[RowFormat, Iterator[Entry | BadEntry]]:
    """The format and the entries of a list.

    kind: one of `list_kind`, but not `tar`. hosts: as `storage.filesystem`.

    Raises:
        ValueError: the list cannot be read, or no column names videos.
    """
    if kind == "parquet":
        names, rows = _parquet_rows(uri, hosts)
    else:
        text = _list_text(uri, hosts)
        read = {"txt": _text_rows, "csv": _csv_rows, "tsv": _tsv_rows, "jsonl": _json_rows}[kind]
        names, rows = read(text, uri)
    form = row_format(names)
    if form is None:
        others = "; ".join(f"{', '.join(sorted(form.columns))} of {form.name}" for form in FORMATS if form.from_dataset)
        error = f"list {uri} has no column 'uri' or 'path': its first line is {shown(list(names))}"
        raise ValueError(f"{error}. Other known columns: {others}")
    return form, (_entry(form, row, f"list {uri}, {place}") for place, row in rows)


def _entry(form: RowFormat, row: Row | BadEntry, place: str) -> Entry | BadEntry:
    if isinstance(row, BadEntry):
        return row
    form = row_format(list(row)) or form  # JSON lines may have different keys
    for column, value in row.items():
        if isinstance(value, str | bytes | list | dict) and len(value) > MAX_CELL:
            error = f"{place}: the column {cut(str(column), MAX_VALUE)!r} has more than {MAX_CELL} characters or values"
            return BadEntry(shown(value), error)
    text = cut(",".join(_text(value) for value in row.values()), MAX_VALUE)
    try:
        entry = form.entry(row)
    # A literal or a number may be deeper or larger than Python can compute with.
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, ArithmeticError, LookupError) as err:
        return BadEntry(text, f"{place}: {cut(str(err), MAX_VALUE)}; expected a row of {form.name}")
    if entry and max(len(entry.name), len(entry.url)) > MAX_NAME:
        return BadEntry(text, f"{place}: the name of the video has more than {MAX_NAME} characters")
    column = next((name for name in form.media if name in row), form.media[0])
    return entry or BadEntry(text, f"{place}: the column {column!r} is empty, or is not text")


def _list_text(uri: str, hosts: Allowed) -> str:
    try:
        return storage.read_bytes(uri, hosts=hosts).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ValueError(f"list {uri} is not UTF-8 ({err.reason} at byte {err.start}): save it as UTF-8") from err
    except OSError as err:
        raise ValueError(f"list {uri} cannot be read: {err.strerror or err}") from err


def _text_rows(text: str, _: str) -> Rows:
    lines = (line.strip() for line in io.StringIO(text, newline=None) if not line.startswith("#"))
    return ["path"], ((line, {"path": line}) for line in lines if line)


def _tsv_rows(text: str, uri: str) -> Rows:
    return _csv_rows(text, uri, "\t")


def _csv_rows(text: str, uri: str, delimiter: str = ",") -> Rows:
    table = io.StringIO(text, newline="")
    reader = csv.DictReader(table, restkey="", delimiter=delimiter, skipinitialspace=True)
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
                number = reader.reader.line_num  # the DictReader's own line_num is that of the line before
                yield "", BadEntry(f"line {number}", f"list {uri}, line {number}: {err}")
                continue
            yield f"line {reader.line_num}", row

    return names, rows()


def _json_rows(text: str, uri: str) -> Rows:
    numbered = enumerate(io.StringIO(text, newline=None), 1)
    lines = [(number, line.strip(), _json_row(line)) for number, line in numbered if line.strip()]
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


def _json_row(line: str) -> dict[str, object]:
    """The JSON object of a line; empty if the line is not a JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _parquet_rows(uri: str, hosts: Allowed) -> Rows:
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


def row_format(names: Sequence[str]) -> RowFormat | None:
    """The first known format whose columns are all among `names`; None for a table without a column of videos."""
    columns = set(names)
    return next((form for form in FORMATS if form.columns <= columns), None)


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def _media(row: Row, names: Sequence[str]) -> str:
    """Text of the first of these columns that is not empty; "" if all are empty."""
    texts = (text.strip() for name in names if isinstance(text := row.get(name), str))
    return next((text for text in texts if text), "")


def _plain(row: Row, media: Sequence[str], text: Sequence[str] = ()) -> Entry | None:
    """Entry of a format with one caption per row. Columns without a special meaning go into the annotation."""
    name = _media(row, media)
    if not name:
        return None
    sha256, md5 = (_text(row.get(key)).lower() for key in ("sha256", "md5"))
    caption = _media(row, text)
    if not caption:
        return Entry(name, sha256=sha256, md5=md5)
    times = _span(*(_seconds(row.get(key), key) for key in ("start_s", "end_s")))
    used = {*media, *text, *OWN_KEYS, ""}
    rest = {key: _value(value) for key, value in row.items() if key not in used and value not in (None, "")}
    return Entry(name, (times | {"text": caption} | rest,), sha256, md5)


def _seconds(value: object, key: str) -> float | None:
    if value in (None, ""):
        return None
    seconds = float(value if isinstance(value, int | float) else str(value))
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{key} = {value!r} is not a time in seconds")
    return seconds


def _span(start_s: float | None, end_s: float | None) -> Annotation:
    if start_s is not None and end_s is not None and start_s >= end_s:
        raise ValueError(f"start_s {start_s:g} is not before end_s {end_s:g}")
    return {"start_s": start_s, "end_s": end_s}


def _value(value: object) -> object:
    """A cell as a JSON value; text that is a number becomes a number."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    if isinstance(value, (bool, int, list, dict)):
        return json.loads(json.dumps(value, default=str))
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def _panda(row: Row) -> Entry | None:
    """Entry of Panda-70M: one row per video, with Python lists of spans, captions and scores."""
    name, url = _text(row.get("videoID")), _text(row.get("url"))
    url = url if "://" in url else ""
    if not name:
        return None
    spans, texts = _literal(row["timestamp"], "timestamp"), _literal(row["caption"], "caption")
    scores = _literal(row["matching_score"], "matching_score") if row.get("matching_score") else [None] * len(texts)
    if not len(spans) == len(texts) == len(scores):
        raise ValueError(f"{len(spans)} timestamps, {len(texts)} captions and {len(scores)} matching scores")
    annotations = []
    for (start, end), text, score in zip(spans, texts, scores, strict=True):
        span = _span(clock_seconds(start), clock_seconds(end)) | {"text": str(text).strip()}
        annotations.append(span | ({} if score is None else {"matching_score": float(score)}))
    return Entry(name, tuple(annotations), url=url)


def _literal(value: object, column: str) -> list:
    """A list, written as a Python literal or already a list (in Parquet); no code is evaluated."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as err:
            raise ValueError(f"{column} = {value[:80]!r} is not a Python list") from err
    if not isinstance(value, list):
        raise ValueError(f"{column} is not a list")
    return value


def clock_seconds(text: str) -> float:
    """Seconds of a time "h:mm:ss.fff".

    Raises:
        ValueError: the text does not have this form.
    """
    hours, minutes, seconds = str(text).split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def is_page(url: str) -> bool:
    """Whether a URL is one of VIDEO_HOSTS, whose URLs lead to pages: no video file can be fetched there."""
    host = url.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0].lower()
    return any(host == site or host.endswith(f".{site}") for site in VIDEO_HOSTS)


def _listed(row: Row) -> Entry | None:
    return _plain(row, ("uri", "path"), ("text", "caption"))


FORMATS = (
    RowFormat("Panda-70M", frozenset({"videoID", "timestamp", "caption"}), ("videoID",), _panda),
    RowFormat(
        "OpenVid-1M", frozenset({"video", "caption"}), ("video",), lambda row: _plain(row, ("video",), ("caption",))
    ),
    RowFormat("Pyramid-Flow", frozenset({"video", "text"}), ("video",), lambda row: _plain(row, ("video",), ("text",))),
    RowFormat("Open-Sora", frozenset({"path", "text"}), ("path",), _listed, False),
    RowFormat("a list", frozenset({"uri"}), ("uri", "path"), _listed, False),
    RowFormat("a list", frozenset({"path"}), ("path",), _listed, False),
)
