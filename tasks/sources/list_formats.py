"""Formats of the rows of a list: which columns name the video, its captions and their times."""

import ast
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tasks.tables.plain_text import MAX_VALUE, cut

MAX_CAPTIONS = 100  # of one row
OWN_KEYS = ("start_s", "end_s", "sha256", "md5")  # columns that have the same meaning in every format
VIDEO_HOSTS = ("youtube.com", "youtu.be")  # their URLs lead to pages and not to video files
# Names that public tools and data sets give to a column. Upper and lower case are the same. Of several, the first
# that has a value counts.
MEDIA = (
    *(
        "uri",
        "path",
        "video",
        "video_path",
        "file_name",
        "filename",
        "file_path",
        "filepath",
        "video_file",
        "clip_path",
    ),
    *("media", "media_path", "clip", "file", "image", "image_path", "vid", "videoid", "video_id", "youtubeid", "url"),
)
TEXT = (
    *("text", "caption", "prompt", "captions", "cap", "dense_caption", "long_caption", "detailed_caption"),
    *("video_caption", "text_prompt", "description", "short_caption", "summary", "label"),
)
START = ("start_s", "start", "start_time", "start_sec", "start_timestamp", "start_timestep", "begin")
END = ("end_s", "end", "end_time", "end_sec", "end_timestamp", "end_timestep", "stop")

# Caption of a video or of a span of it: "start_s" and "end_s" (None: of the whole video), "text", and other columns.
Annotation = dict[str, object]
Row = Mapping[str, object]  # cells by column
NumberedRows = Iterator[tuple[str, "Row | BadEntry"]]  # (place in the list, row)
Rows = tuple[Sequence[str], NumberedRows]  # (column names, rows)
Columns = Mapping[Literal["media", "text", "start", "end"], str]  # columns of a list that the user names


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
    entry: makes an entry from a row, whose columns are in lower case; None if the row names no video.
    from_dataset: the format of a published data set, whose files may be anywhere below media_root.
    """

    name: str
    columns: frozenset[str]
    media: tuple[str, ...]
    entry: Callable[[Row], Entry | None]
    from_dataset: bool = True


def row_format(names: Sequence[str]) -> RowFormat | None:
    """The first known format whose columns are all among `names`; None for a table without a column of videos."""
    columns = {str(name).strip().lower() for name in names}
    return next((form for form in FORMATS if form.columns <= columns), None)


def lower(row: Row) -> dict[str, object]:
    """The row with the names of its columns in lower case."""
    return {str(name).strip().lower(): value for name, value in row.items()}


def renamed(row: Row, columns: Columns) -> dict[str, object]:
    """The row with columns of the user under the names that this module knows."""
    known: dict[str, str] = {"media": "uri", "text": "text", "start": "start_s", "end": "end_s"}
    mapped = {known[key]: row.get(name) for key, name in columns.items()}
    return {name: value for name, value in row.items() if name not in columns.values()} | mapped


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def _media(row: Row, names: Sequence[str]) -> str:
    """Text of the first of these columns that is not empty; "" if all are empty."""
    texts = (text.strip() for name in names if isinstance(text := row.get(name), str))
    return next((text for text in texts if text), "")


def _plain(
    row: Row,
    media: Sequence[str] = MEDIA,
    text: Sequence[str] = TEXT,
    start: Sequence[str] = START,
    end: Sequence[str] = END,
) -> Entry | None:
    """Entry of a format with the captions of one video or span per row.

    Each argument has the possible names of a column. Columns without a special meaning go into the annotation.
    """
    name = _media(row, media)
    if not name:
        if any(isinstance(value := row.get(column), dict) and value.get("bytes") for column in media):
            raise ValueError("the video itself is in the list, not its name: write the videos to files first")
        return None
    sha256, md5 = (_text(row.get(key)).lower() for key in ("sha256", "md5"))
    column, captions = _captions(row, text)
    url = next((url for key in ("url", "video_url") if "://" in (url := _text(row.get(key)))), "")
    if not captions:
        return Entry(name, sha256=sha256, md5=md5, url=url)
    times = _span(*(_first_seconds(row, names) for names in (start, end)))
    used = {column, *media, *OWN_KEYS, *start, *end, ""}
    rest = {key: _value(value) for key, value in row.items() if key not in used and value not in (None, "")}
    return Entry(name, tuple(times | {"text": caption} | rest for caption in captions), sha256, md5, url)


def _captions(row: Row, names: Sequence[str]) -> tuple[str, list[str]]:
    """The first of these columns with a caption, and its captions: a text, or a list of them."""
    for name in names:
        value = row.get(name)
        texts = [_content(text) for text in (value if isinstance(value, list) else [value])]
        found = [text.strip() for text in texts if isinstance(text, str) and text.strip() and text.strip() != "nan"]
        if found:
            return name, found[:MAX_CAPTIONS]
        if isinstance(value, dict | list) and value:
            raise ValueError(f"the column {name!r} holds no caption but {cut(str(value), MAX_VALUE)}")
    return "", []


def _content(value: object) -> object:
    """The text of a caption that is an object, as in ShareGPT4Video."""
    if isinstance(value, dict):
        return next((value[name] for name in ("content", "caption", "text", "en") if value.get(name)), None)
    return value


def _first_seconds(row: Row, names: Sequence[str]) -> float | None:
    """Time of the first of these columns that has one."""
    return next((seconds for name in names if (seconds := _seconds(row.get(name), name)) is not None), None)


def _seconds(value: object, key: str) -> float | None:
    if value in (None, ""):
        return None
    if isinstance(value, str) and ":" in value:
        return clock_seconds(value)
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
    """Entry of Panda-70M: one row per video, with Python lists of spans, captions and scores.

    Koala-36M has the same columns with one span and one caption per row.
    """
    name, url = _text(row.get("videoid")), _text(row.get("url"))
    url = url if "://" in url else ""
    if not name:
        return None
    spans = _literal(row["timestamp"], "timestamp")
    if len(spans) == 2 and all(isinstance(time, str) for time in spans):
        text = _text(row["caption"])
        span = _span(clock_seconds(spans[0]), clock_seconds(spans[1]))
        return Entry(name, (span | {"text": text},) if text else (), url=url)
    texts = _literal(row["caption"], "caption")
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


def _conversation(row: Row) -> Entry | None:
    """Entry of LLaVA-Video: the caption is the last answer of the model."""
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise ValueError("conversations is not a list of turns")
    answers = [_text(turn.get("value")) for turn in turns if isinstance(turn, dict) and turn.get("from") != "human"]
    name, caption = _media(row, ("video",)), answers[-1] if answers else ""
    if not name:
        return None
    return Entry(name, ({"start_s": None, "end_s": None, "text": caption},) if caption else ())


def clock_seconds(text: str) -> float:
    """Seconds of a time "h:mm:ss.fff" or "mm:ss.fff".

    Raises:
        ValueError: the text does not have this form.
    """
    hours, minutes, seconds = ["0", *str(text).replace(",", ".").split(":")][-3:]
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def is_page(url: str) -> bool:
    """Whether a URL is one of VIDEO_HOSTS, whose URLs lead to pages: no video file can be fetched there."""
    host = url.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0].lower()
    return any(host == site or host.endswith(f".{site}") for site in VIDEO_HOSTS)


_MIRA = partial(_plain, media=("index",), text=("dense_caption", "short_caption"), start=(), end=())
# A list with the columns of several formats has the first one. The last ones are lists with a column of MEDIA.
FORMATS = (
    RowFormat("Panda-70M", frozenset({"videoid", "timestamp", "caption"}), ("videoid",), _panda),
    RowFormat("LLaVA-Video", frozenset({"video", "conversations"}), ("video",), _conversation),
    RowFormat("MiraData", frozenset({"index", "dense_caption"}), ("index",), _MIRA),
    RowFormat("OpenVid-1M", frozenset({"video", "caption"}), ("video",), _plain),
    RowFormat("Pyramid-Flow", frozenset({"video", "text"}), ("video",), _plain),
    RowFormat("Open-Sora", frozenset({"path", "text"}), ("path",), _plain, False),
    *(RowFormat("a list", frozenset({name}), MEDIA, _plain, name not in ("uri", "path")) for name in MEDIA),
)
