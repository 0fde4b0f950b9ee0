"""Lists of videos: what kind a file is, told by its content, and the entries it has with what they say of each video.

A list is text, CSV, TSV, JSON lines or Parquet; which format its rows have is told by its columns.
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
from typing import Any

from tasks.tables import storage

HEAD_BYTES = 64 * 2**10
LISTS = (".txt", ".csv", ".tsv", ".jsonl")  # are lists whatever they contain
MAX_LITERAL = 2**20  # characters of a Python literal in a cell
OWN_KEYS = ("start_s", "end_s", "sha256", "md5")  # columns with a meaning of their own in every format
VIDEO_HOSTS = ("youtube.com", "youtu.be")  # they serve pages, not files


@dataclass(frozen=True)
class Entry:
    """What a list says of one video."""

    name: str  # path or URI, as written
    annotations: tuple[dict[str, Any], ...] = ()  # {"start_s", "end_s", "text", …}; no times: the whole video
    sha256: str = ""
    md5: str = ""
    url: str = ""  # where the video was published, when `name` is only its name


@dataclass(frozen=True)
class BadEntry:
    """An entry of a list that names no file."""

    text: str
    reason: str


Row = Mapping[str, Any]


@dataclass(frozen=True)
class RowFormat:
    """A known set of columns."""

    name: str
    columns: frozenset[str]  # that it is told by
    media: tuple[str, ...]  # those of them that name the video
    entry: Callable[[Row], Entry | None]  # None: the row names nothing
    from_dataset: bool = True  # of a published data set, whose files may lie anywhere below media_root


def list_kind(uri: str, head: bytes | None = None) -> str:
    """What a file is, by its first bytes: `parquet`, `tar`, `jsonl`, `csv`, `tsv` or `txt`; empty: itself a video.

    Text that is no table is a list only when its name says so. head: its first HEAD_BYTES, where they are known.
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
        if len(head) < HEAD_BYTES or err.start < HEAD_BYTES - 4:  # else a character is cut by the end of the head
            return ""
        text = head[: err.start].decode("utf-8-sig")
    if "\0" in text and suffix not in LISTS:
        return ""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lstrip().startswith("{"):
        return "jsonl" if suffix in LISTS or _json_row(first) else ""
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        if row_format(_names(first, delimiter)):
            # A list of paths may begin with a file that is called "path"; a table has more columns, or says so.
            return kind if suffix != ".txt" or delimiter in first else "txt"
    return suffix[1:] if suffix in LISTS else ""


def _suffix(uri: str) -> str:
    path = uri.partition("?")[0] if "://" in uri else uri
    return PurePosixPath(path).suffix.lower()


def _head(uri: str) -> bytes:
    """The first bytes of a regular file; none when it cannot be read, which its own row will tell."""
    try:
        fs, path = storage.filesystem(uri)
        if storage.is_local(uri) and not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with fs.open(path, "rb", block_size=HEAD_BYTES) as file:
            data = file.read(HEAD_BYTES)
    except Exception:  # each file system has its own
        return b""
    assert isinstance(data, bytes), "opened in binary mode"
    return data


def _names(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:
        return []


def read_list(uri: str, kind: str) -> tuple[RowFormat, Iterator[Entry | BadEntry]]:
    """The format of a list, and its entries.

    Raises:
        ValueError: it cannot be read, or its columns name no videos.
    """
    if kind == "parquet":
        names, rows = _parquet_rows(uri)
    else:
        text = _list_text(uri)
        read = {"txt": _text_rows, "csv": _csv_rows, "tsv": _tsv_rows, "jsonl": _json_rows}[kind]
        names, rows = read(text, uri)
    form = row_format(names)
    if form is None:
        also = "; ".join(f"{', '.join(sorted(one.columns))} of {one.name}" for one in FORMATS if one.from_dataset)
        wrong = f"list {uri} has no column 'uri' or 'path': its first line is {list(names)}"
        raise ValueError(f"{wrong}. Also read: {also}")
    return form, (_entry(form, row, f"list {uri}, {where}") for where, row in rows)


def _entry(form: RowFormat, row: Row | BadEntry, where: str) -> Entry | BadEntry:
    if isinstance(row, BadEntry):
        return row
    form = row_format(list(row)) or form  # lines of JSON may differ
    text = ",".join(_text(value) for value in row.values())
    try:
        entry = form.entry(row)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as err:
        return BadEntry(text, f"{where}: {err}; expected a row of {form.name}")
    column = next((name for name in form.media if name in row), form.media[0])
    return entry or BadEntry(text, f"{where}: the column {column!r} is empty, or no text")


def _list_text(uri: str) -> str:
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ValueError(f"list {uri} is not UTF-8 ({err.reason} at byte {err.start}): save it as UTF-8") from err
    except OSError as err:
        raise ValueError(f"list {uri} cannot be read: {err.strerror or err}") from err


Rows = tuple[Sequence[str], Iterator[tuple[str, Row | BadEntry]]]  # column names; (where it stands, row)


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

    def rows() -> Iterator[tuple[str, Row | BadEntry]]:
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as err:
                number = reader.reader.line_num  # the DictReader's own still stands at the line before
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

    def rows() -> Iterator[tuple[str, Row | BadEntry]]:
        for number, line, row in lines:
            wanted = f'list {uri}, line {number}: expected {{"uri": "…"}} or {{"path": "…"}}, got {line!r}'
            yield f"line {number}", row if row_format(list(row)) else BadEntry(line, wanted)

    return names, rows()


def _json_row(line: str) -> dict[str, Any]:
    """A line as an object; empty when it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _parquet_rows(uri: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fs, path = storage.filesystem(uri)
    try:
        with fs.open(path, "rb") as file:
            names = pq.ParquetFile(file).schema_arrow.names
    except (pa.ArrowInvalid, OSError) as err:
        raise ValueError(f"list {uri} cannot be read as Parquet: {err}") from err

    def rows() -> Iterator[tuple[str, Row | BadEntry]]:
        with fs.open(path, "rb") as file:
            batches = pq.ParquetFile(file).iter_batches(batch_size=4096)
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield f"row {number}", row

    return names, rows()


def row_format(names: Sequence[str]) -> RowFormat | None:
    """The first known format whose columns are all there; None for a table that names no videos."""
    there = set(names)
    return next((form for form in FORMATS if form.columns <= there), None)


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def _media(row: Row, names: Sequence[str]) -> str:
    """The first of these columns that names something."""
    return next((row[name].strip() for name in names if isinstance(row.get(name), str) and row[name].strip()), "")


def _plain(row: Row, media: Sequence[str], text: Sequence[str] = ()) -> Entry | None:
    """An entry of a format with one row a caption; columns without a meaning of their own are kept as they are."""
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


def _seconds(value: Any, key: str) -> float | None:
    if value in (None, ""):
        return None
    seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{key} = {value!r} is no time in seconds")
    return seconds


def _span(start_s: float | None, end_s: float | None) -> dict[str, Any]:
    if start_s is not None and end_s is not None and start_s >= end_s:
        raise ValueError(f"start_s {start_s:g} is not before end_s {end_s:g}")
    return {"start_s": start_s, "end_s": end_s}


def _value(value: Any) -> Any:
    """A cell as JSON holds it: numbers as numbers."""
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
    """Panda-70M: one row a video, with Python lists of spans, of captions and of scores."""
    name, url = _text(row.get("videoID")), _text(row.get("url"))
    url = url if "://" in url else ""
    if not name:
        return None
    spans, texts = _literal(row["timestamp"], "timestamp"), _literal(row["caption"], "caption")
    scores = _literal(row["matching_score"], "matching_score") if row.get("matching_score") else [None] * len(texts)
    if not len(spans) == len(texts) == len(scores):
        raise ValueError(f"{len(spans)} timestamps, {len(texts)} captions and {len(scores)} matching scores")
    found = []
    for (start, end), text, score in zip(spans, texts, scores, strict=True):
        span = _span(clock_seconds(start), clock_seconds(end)) | {"text": str(text).strip()}
        found.append(span | ({} if score is None else {"matching_score": float(score)}))
    return Entry(name, tuple(found), url=url)


def _literal(value: Any, column: str) -> list:
    """A list that is written as Python writes it (or is one already, in Parquet); nothing in it is evaluated."""
    if isinstance(value, str):
        if len(value) > MAX_LITERAL:
            raise ValueError(f"{column} has {len(value)} characters")
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as err:
            raise ValueError(f"{column} = {value[:80]!r} is no list as Python writes it") from err
    if not isinstance(value, list):
        raise ValueError(f"{column} is no list")
    return value


def clock_seconds(text: str) -> float:
    """Seconds of "h:mm:ss.fff".

    Raises:
        ValueError: it is not of that form.
    """
    hours, minutes, seconds = str(text).split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def is_page(url: str) -> bool:
    """Whether a URL belongs to a site that shows videos in pages, from which no file can be fetched."""
    host = url.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0].lower()
    return any(host == one or host.endswith(f".{one}") for one in VIDEO_HOSTS)


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
