"""Checks of every table of a root: schema, ids, checksums, references, media files, counts.

A check changes nothing; it gives a `Finding` with the number of bad rows, one example, and what to do. `fail` means
that data is missing or wrong, `warn` that something is unfinished or left over.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.inspecting.leftovers import (
    COPIED,
    half_written,
    is_copied,
    media_files,
    named_files,
    named_models,
    unnamed_media,
    unnamed_parquet,
)
from tasks.models.folders import changed_weights
from tasks.tables import storage
from tasks.tables.content_ids import crc32
from tasks.tables.delta import (
    DamagedTableError,
    TableError,
    as_dataset,
    damaged_files,
    open_table,
    read_table,
    table_uri,
    table_version,
)
from tasks.tables.log import log_damage, recorded_versions
from tasks.tables.parquet_files import parquet_files
from tasks.tables.repair import orphans
from tasks.tables.root_paths import MARK, MEDIA_COLUMNS
from tasks.tables.schemas import BLOB_COLUMNS, ID_COLUMNS, SCHEMAS
from tasks.tables.text_hashes import may_repeat

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
REPAIR = "pyramid manifest repair ROOT says what can be brought back, and does it with --apply; it deletes nothing"
RESTORE = (
    "restore the file from a copy of the root; if there is none: pyramid manifest repair ROOT --give-up-damaged takes "
    "it out of the table, and the same pyramid command as before computes its rows again"
)
CHANGED = "restore the file from a copy; a clip that was lost can be cut again from its video"
OUTSIDE = (
    "the rows name files outside of the root, which are not opened. If you imported them yourself, name their folder: "
    "export PYRAMID_MEDIA_FOLDERS=/folder/of/the/videos, on every machine"
)
RETRAIN = "restore the folder from a copy; generation and evaluation refuse these weights. Without a copy train again"
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


def verify(root: str, table: str | None = None, blobs: bool = True, media: bool = False) -> Iterator[Finding]:
    """Findings of every check on every table that has been written, one after another.

    Args:
        root: of the tables.
        table: check this one only.
        blobs: also read every binary value and compare its length and crc32; for many latents this takes long.
        media: also read every clip, generated clip and copy of a source, and compare its checksum.
    """
    unreadable: set[str] = set()  # tables that cannot be read: no further check reads them
    recorded = recorded_versions(root)
    for name in SCHEMAS:
        findings = [check_log(root, name), *check_recorded(root, name, recorded), check_files(root, name, blobs)]
        if findings[-1].level == "fail":
            unreadable.add(name)
            if findings[0].level == "fail" and findings[-1].num_checked == 1:  # the table cannot be opened
                findings.pop()
        if table in (None, name):
            yield from (finding for finding in findings if finding.num_checked)
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
        yield check_left_over(root, name)
    if not unreadable & {"sources", "videos", "clips"} and {"sources", "videos", "clips"} & set(names):
        yield from check_counts(root)
    files = media_files(root)
    for name in names:
        if name in MEDIA_COLUMNS:
            yield check_media(root, name, files, media)
    if "models" in names and open_table(root, "models") is not None:
        yield check_weights(root, unreadable)
    if table is None and not unreadable & set(MEDIA_COLUMNS):
        unnamed = unnamed_media(root, files)
        left_over, advice = unnamed + half_written(root), COPIED if is_copied(root, files, unnamed) else VACUUM
        yield _finding("(files)", "no left-over files", len(files), left_over, advice, "warn")


def check_log(root: str, table: str) -> Finding:
    """Whether every entry and checkpoint of the log of a table is there and can be read."""
    uri = table_uri(root, table)
    num_files = len(parquet_files(uri)) and 1 + table_version_or_none(root, table)
    return _finding(table, "log", num_files, [str(damage) for damage in log_damage(uri)], REPAIR)


def table_version_or_none(root: str, table: str) -> int:
    """Newest version of a table; 0 if it cannot be opened."""
    try:
        return table_version(root, table)
    except TableError:
        return 0


def check_recorded(root: str, table: str, recorded: dict[str, tuple[int, str]]) -> Iterator[Finding]:
    """Whether a table has the versions that the results of steps state. recorded: of `recorded_versions`."""
    if table not in recorded:
        return
    version, path = recorded[table]
    try:
        newest = table_version(root, table)
    except TableError:  # another check reports the damage
        return
    lost = [f"{path} names version {version}, the newest is {newest}"] if newest < version else []
    yield _finding(table, "versions that runs recorded", 1, lost, REPAIR)


def check_left_over(root: str, table: str) -> Finding:
    """Find Parquet files that no version of a table names, and among them those with rows that the table lacks."""
    delta = open_table(root, table)
    if delta is None:
        return Finding(table, "no left-over Parquet files", 0)
    missing, _ = orphans(delta, table)
    num_files = len(parquet_files(delta.table_uri))
    if missing:
        bad = [f"{name} has {count} rows that are not in the table" for name, count in missing.items()]
        advice = f"a commit was lost, or its step was killed before it. {REPAIR}. Or let vacuum remove the files"
        return _finding(table, "no left-over Parquet files", num_files, bad, advice, "warn")
    return _finding(table, "no left-over Parquet files", num_files, unnamed_parquet(root, table), VACUUM, "warn")


def check_files(root: str, table: str, blobs: bool = True) -> Finding:
    """Whether this version can read the table, and every Parquet file that its log names is whole.

    For a table that has not been written yet, `num_checked` is 0. blobs: compare the checksums of tables with binary
    values too, not only sizes.
    """
    check = "columns and files"
    try:
        delta = open_table(root, table)
    except TableError as err:
        damaged = isinstance(err, DamagedTableError)
        return _finding(
            table, check, 1, [str(err)], REPAIR if damaged else "use the version of this package that wrote the table"
        )
    if delta is None:
        return Finding(table, check, 0)
    bad = damaged_files(delta, every_byte=blobs or table not in BLOB_COLUMNS)
    return _finding(table, check, 1 + len(delta.file_uris()), bad, RESTORE)


def _check_rows(root: str, table: str) -> Iterator[Finding]:
    """Checks of the ids, attempts and statuses of every row ever written."""
    id_column = ID_COLUMNS[table]
    rows = read_table(root, table, [id_column, "attempt", "status", "error_type"], newest=False)
    malformed = rows[id_column].filter(pc.invert(_matches(rows[id_column], "^[0-9a-f]{32}$")))
    yield _finding(table, "ids are 32 hex digits", len(rows), [repr(i) for i in malformed.to_pylist()], DAMAGED)
    yield _check_doubles(root, table, rows[id_column])
    is_ok = pc.fill_null(pc.equal(rows["status"], "ok"), False)
    has_reason = pc.fill_null(pc.not_equal(rows["error_type"], ""), False)
    clear = pc.and_(pc.is_in(rows["status"], value_set=pa.array(STATUSES)), pc.xor(is_ok, has_reason))
    unclear = [
        f"{row['status']!r} with error type {row['error_type']!r}" for row in rows.filter(pc.invert(clear)).to_pylist()
    ]
    advice = "a bug of the step that wrote the rows: report it"
    yield _finding(table, "every row says ok, or why not", len(rows), unclear, advice)


def _matches(texts: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.match_substring_regex(texts, pattern), False)


def _check_doubles(root: str, table: str, ids: pa.ChunkedArray) -> Finding:
    """Find ids that have two rows with the same attempt and settings. ids: of all rows.

    Two such rows by the same code are equal, since an id is a hash of all inputs: that is a warning only. Runs with
    different settings may write the same attempt at the same moment; `newest` decides which row counts.
    """
    check, id_column = "one row per id and attempt", ID_COLUMNS[table]
    candidates = pa.array(may_repeat(pa.table({id_column: ids}), [id_column]))
    repeated = ids.filter(candidates).combine_chunks().unique()
    writers = ["status", "step_version", "code_version"]
    keys = [id_column, "attempt", "params_hash"]
    rows = read_table(root, table, [*keys, *writers], where=pc.field(id_column).isin(repeated), newest=False)
    groups = rows.group_by(keys).aggregate([([], "count_all"), *((name, "count_distinct") for name in writers)])
    doubles = groups.filter(pc.field("count_all") > 1)
    unequal = doubles.filter(
        (pc.field("status_count_distinct") > 1)
        | (pc.field("step_version_count_distinct") > 1)
        | (pc.field("code_version_count_distinct") > 1)
    )
    worst = unequal if len(unequal) else doubles
    twice = [f"{row[id_column]} attempt {row['attempt']}: more than one row" for row in worst.to_pylist()]
    if len(unequal):
        return _finding(table, check, len(ids), twice, "two versions of the code wrote at the same time")
    return _finding(table, check, len(ids), twice, "two runs used one root at once; readers take one row", "warn")


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
    # Attempts of a row refer to the same row. Without a choice of attempts only this column is read.
    names_one = (pc.field("status") != "failed") & (pc.field(column) != "")
    values = read_table(root, table, [column], where=names_one, newest=False)[column]
    targets = read_table(root, other, [other_column])[other_column].combine_chunks()
    dangling = values.filter(pc.invert(pc.is_in(values, value_set=targets)))
    return _finding(table, f"{column} is in {other}", len(values), dangling.to_pylist(), RERUN)


def check_counts(root: str) -> Iterator[Finding]:
    """Whether every readable source file has a row of `videos`, and every clip of a video a row of `clips`."""
    readable = read_table(root, "sources", ["video_id"], where=pc.field("status") == "ok")["video_id"].unique()
    videos = read_table(root, "videos", ["video_id", "clip_ids"])
    without_row = readable.filter(pc.invert(pc.is_in(readable, value_set=videos["video_id"].combine_chunks())))
    yield _finding(
        "sources",
        "every file became a video row",
        len(readable),
        without_row.to_pylist(),
        "run pyramid curate",
        "warn",
    )
    clip_ids = videos["clip_ids"].combine_chunks().flatten()
    with_row = read_table(root, "clips", ["clip_id"])["clip_id"].combine_chunks()
    missing = clip_ids.filter(pc.invert(pc.is_in(clip_ids, value_set=with_row)))
    yield _finding("videos", "every clip of a video has its row", len(clip_ids), missing.to_pylist(), LOST)


def check_media(root: str, table: str, files: dict[str, int], every_byte: bool = False) -> Finding:
    """Whether every file that an ok row names exists, with the size and, with `every_byte`, the checksum of the row."""
    media = named_files(root, table)
    bad = []
    for file in media:
        size = files.get(file.path)
        if size is None and not storage.exists(file.uri):
            bad.append(f"{file.row_id}: no {file.uri}")
        elif size is not None and file.size_bytes is not None and size != file.size_bytes:
            bad.append(f"{file.row_id}: {file.uri} has {size} bytes, expected {file.size_bytes}")
        elif every_byte and file.crc32 is not None and (checksum := storage.file_crc32(file.uri)) != file.crc32:
            bad.append(f"{file.row_id}: {file.uri} was changed: its crc32 is {checksum:08x}, expected {file.crc32:08x}")
    check = "media files are there and unchanged" if every_byte else "media files are there"
    advice = CHANGED if bad and "changed" in bad[0] else OUTSIDE if bad and MARK in bad[0] else MOVED
    return _finding(table, check, len(media), bad, advice)


def check_weights(root: str, unreadable: Container[str] = ()) -> Finding:
    """Compare each model folder that a row names with the hash in the row. unreadable: tables that are left out."""
    models = named_models(root, unreadable)
    problems = [changed_weights(uri, expected, kind) for (uri, expected), kind in models.items()]
    bad = [problem for problem in problems if problem]
    return _finding("models", "weights have their hash", len(models), bad, RETRAIN)
