"""Checks of every table of a root: schema, ids, checksums, references, media files, counts.

A check changes nothing; it gives a `Finding` with the number of bad rows, one example, and what to do. `fail` means
that data is missing or wrong, `warn` that something is unfinished or left over.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.inspecting.leftovers import (
    COPIED,
    MEDIA_COLUMNS,
    half_written,
    is_copied,
    media_files,
    named_files,
    unnamed_media,
    unnamed_parquet,
)
from tasks.tables import storage
from tasks.tables.delta import TableError, as_dataset, crc32, open_table, read_table, table_version
from tasks.tables.manifest import damaged_files
from tasks.tables.schemas import BLOB_COLUMNS, ID_COLUMNS, SCHEMAS

# (table, column) -> (table, column) that must have each of its values; an empty value refers to nothing
REFERENCES: dict[tuple[str, str], tuple[str, str]] = {
    ("videos", "video_id"): ("sources", "video_id"),
    ("clips", "video_id"): ("videos", "video_id"),
    ("scores", "clip_id"): ("clips", "clip_id"),
    ("embeddings", "clip_id"): ("clips", "clip_id"),
    ("duplicates", "clip_id"): ("clips", "clip_id"),
    ("selections", "clip_id"): ("clips", "clip_id"),
    ("captions", "clip_id"): ("clips", "clip_id"),
    ("captions", "parent_caption_id"): ("captions", "caption_id"),
    ("latents", "clip_id"): ("clips", "clip_id"),
    ("evaluations", "model_id"): ("models", "model_id"),
    ("generations", "weights_hash"): ("evaluations", "weights_hash"),
}
STATUSES = ("ok", "failed", "skipped")
RERUN = "run the same command again: it computes the missing rows"
VACUUM = (
    "when no run is using this root, remove them: pyramid manifest vacuum ROOT --older-than 0 --delete "
    "(a running step would lose files that it has not committed; without --older-than 0, files of the last day stay)"
)
MOVED = "rows hold absolute paths: if the root was moved, move it back; if not, restore the file, or start a new root"
LOST = "rows are missing: restore an earlier copy of the table, or start a new root"
DAMAGED = "the file was changed or damaged: restore it from a copy, or start a new root"


@dataclass(frozen=True)
class Finding:
    """Result of one check on one table."""

    table: str
    check: str
    num_checked: int
    num_bad: int = 0
    level: str = "ok"  # ok | warn | fail
    example: str = ""
    advice: str = ""


def _finding(table: str, check: str, num_checked: int, bad: list[str], advice: str, level: str = "fail") -> Finding:
    if not bad:
        return Finding(table, check, num_checked)
    return Finding(table, check, num_checked, len(bad), level, bad[0], advice)


def verify(root: str, table: str | None = None, blobs: bool = True) -> Iterator[Finding]:
    """Findings of every check on every table that has been written, one after another.

    Args:
        root: of the tables.
        table: check this one only.
        blobs: also read every binary value and compare its length and crc32; for many latents this takes long.
    """
    unreadable: set[str] = set()  # tables that cannot be read: no further check reads them
    for name in SCHEMAS:
        finding = check_files(root, name)
        if finding.level == "fail":
            unreadable.add(name)
        if finding.num_checked and table in (None, name):
            yield finding
    names = [name for name in SCHEMAS if table in (None, name) and name not in unreadable]
    for name in names:
        if open_table(root, name) is None:
            continue
        yield from _check_rows(root, name)
        if blobs and name in BLOB_COLUMNS:
            yield check_blobs(root, name)
        for column, target in ((c, t) for (source, c), t in REFERENCES.items() if source == name):
            if target[0] not in unreadable:
                yield check_reference(root, (name, column), target)
        left_over = unnamed_parquet(root, name)
        yield _finding(name, "no left-over Parquet files", table_version(root, name), left_over, VACUUM, "warn")
    if not unreadable & {"sources", "videos", "clips"} and {"sources", "videos", "clips"} & set(names):
        yield from check_counts(root)
    files = media_files(root)
    for name in names:
        if name in MEDIA_COLUMNS:
            yield check_media(root, name, files)
    if table is None and not unreadable & set(MEDIA_COLUMNS):
        unnamed = unnamed_media(root, files)
        left_over, advice = unnamed + half_written(root), COPIED if is_copied(root, files, unnamed) else VACUUM
        yield _finding("(files)", "no left-over files", len(files), left_over, advice, "warn")


def check_files(root: str, table: str) -> Finding:
    """Whether this version can read the table, and every Parquet file that its log names is complete.

    For a table that has not been written yet, `num_checked` is 0.
    """
    try:
        delta = open_table(root, table)
    except TableError as err:
        return _finding(table, "columns", 1, [str(err)], "use the version of this package that wrote the table")
    if delta is None:
        return Finding(table, "columns and files", 0)
    advice = "files are missing or damaged: restore them from a copy"
    return _finding(table, "columns and files", 1 + len(delta.file_uris()), damaged_files(root, table), advice)


def _check_rows(root: str, table: str) -> Iterator[Finding]:
    """Checks of the ids, attempts and statuses of every row ever written."""
    id_column = ID_COLUMNS[table]
    names = [id_column, "attempt", "status", "error_type", "step_version", "params_hash", "code_version"]
    rows = read_table(root, table, names, latest=False)
    ids = rows[id_column]
    malformed = ids.filter(pc.invert(pc.fill_null(pc.match_substring_regex(ids, "^[0-9a-f]{32}$"), False)))
    yield _finding(
        table, "ids are 32 hex digits", len(ids), [repr(row_id) for row_id in malformed.to_pylist()], DAMAGED
    )
    yield _check_doubles(table, rows, id_column)
    pairs = zip(rows["status"].to_pylist(), rows["error_type"].to_pylist(), strict=True)
    unclear = [f"{status!r} with error type {kind!r}" for status, kind in pairs if not _clear_status(status, kind)]
    yield _finding(
        table,
        "every row says ok, or why not",
        len(ids),
        unclear,
        "a bug of the step that wrote the rows: report it",
    )


def _check_doubles(table: str, rows: pa.Table, id_column: str) -> Finding:
    """Whether no id has two rows of one attempt with the same settings.

    Two such rows by the same code are equal, since an id is a hash of all inputs: that is a warning only. Runs with
    different settings may write the same attempt at the same moment; `newest` decides which row counts.
    """
    keys = list(zip(*(rows[name].to_pylist() for name in (id_column, "attempt", "params_hash")), strict=True))
    writers: dict[tuple, set] = {key: set() for key, count in Counter(keys).items() if count > 1}
    columns = (rows[name].to_pylist() for name in ("status", "step_version", "code_version"))
    for key, writer in zip(keys, zip(*columns, strict=True), strict=True):
        if key in writers:
            writers[key].add(writer)
    unequal = [key for key, of_key in writers.items() if len(of_key) > 1]
    twice = [f"{row_id} attempt {attempt}: more than one row" for row_id, attempt, _ in unequal or writers]
    check = "one row per id and attempt"
    if unequal:
        return _finding(table, check, len(keys), twice, "two versions of the code wrote at the same time")
    return _finding(table, check, len(keys), twice, "two runs used one root at once; readers take one row", "warn")


def _clear_status(status: str | None, error_type: str | None) -> bool:
    return status in STATUSES and (status == "ok") == (not error_type)


def check_blobs(root: str, table: str) -> Finding:
    """Whether the length (by shape and dtype) and the crc32 of every binary value of the ok rows are right."""
    delta, id_column, blobs = open_table(root, table), ID_COLUMNS[table], list(BLOB_COLUMNS[table])
    if delta is None:
        return Finding(table, "checksums", 0)
    bad: list[str] = []
    num_checked = 0
    columns = [id_column, "status", "shape", "dtype", "crc32", *blobs]
    for batch in as_dataset(delta, table).to_batches(columns=columns, batch_size=64, batch_readahead=1):
        for row in batch.filter(pc.equal(batch["status"], "ok")).to_pylist():
            num_checked += 1
            values = [row[name] or b"" for name in blobs]
            if crc32(*values) != row["crc32"]:
                bad.append(f"{row[id_column]}: crc32 {crc32(*values)}, expected {row['crc32']}")
            elif len(values[0]) != (expected := blob_bytes(row["shape"], row["dtype"])):
                bad.append(f"{row[id_column]}: {len(values[0])} bytes, expected {expected} ({row['dtype']})")
    return _finding(table, "checksums and lengths of binary values", num_checked, bad, DAMAGED)


def blob_bytes(shape: list[int] | None, dtype: str) -> int:
    """Bytes of a dense array. dtype: by name, since numpy has no bfloat16."""
    item = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return int(np.prod(shape or [0])) * item


def check_reference(root: str, source: tuple[str, str], target: tuple[str, str]) -> Finding:
    """Whether every value of one (table, column) is in another one; empty values and failed rows do not count."""
    (table, column), (other, other_column) = source, target
    values = read_table(root, table, [column], where=pc.field("status") != "failed")[column].drop_null()
    values = values.filter(pc.not_equal(values, ""))
    targets = read_table(root, other, [other_column])[other_column].combine_chunks()
    dangling = values.filter(pc.invert(pc.is_in(values, value_set=targets)))
    return _finding(table, f"{column} is in {other}", len(values), dangling.to_pylist(), RERUN)


def check_counts(root: str) -> Iterator[Finding]:
    """Whether every readable source file has a row of `videos`, and every clip of a video a row of `clips`."""
    readable = read_table(root, "sources", ["video_id"], where=pc.field("status") == "ok")["video_id"].unique()
    videos = read_table(root, "videos", ["video_id", "clip_ids"])
    waiting = readable.filter(pc.invert(pc.is_in(readable, value_set=videos["video_id"].combine_chunks())))
    yield _finding(
        "sources",
        "every file became a video row",
        len(readable),
        waiting.to_pylist(),
        "run pyramid curate",
        "warn",
    )
    clip_ids = videos["clip_ids"].combine_chunks().flatten()
    with_row = read_table(root, "clips", ["clip_id"])["clip_id"].combine_chunks()
    missing = clip_ids.filter(pc.invert(pc.is_in(clip_ids, value_set=with_row)))
    yield _finding("videos", "every clip of a video has its row", len(clip_ids), missing.to_pylist(), LOST)


def check_media(root: str, table: str, files: dict[str, int]) -> Finding:
    """Whether every file that an ok row names exists, with the size that the row states."""
    media = named_files(root, table)
    bad = []
    for file in media:
        size = files.get(file.path)
        if size is None and not storage.exists(file.uri):
            bad.append(f"{file.row_id}: no {file.uri}")
        elif size is not None and file.size_bytes is not None and size != file.size_bytes:
            bad.append(f"{file.row_id}: {file.uri} has {size} bytes, expected {file.size_bytes}")
    return _finding(table, "media files are there", len(media), bad, MOVED)
