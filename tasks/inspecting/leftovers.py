"""Files of a root that no row of a table names. Killed steps leave such files, and they can be removed."""

import contextlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import fsspec
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from tasks.captioning.answers import spent_answers
from tasks.models.folders import ModelSet, hash_records
from tasks.tables import storage
from tasks.tables.appending import compacted_versions
from tasks.tables.delta import open_table, read_table, table_uri, table_version
from tasks.tables.log import log_damage, recorded_versions
from tasks.tables.root_paths import MEDIA_COLUMNS, inside
from tasks.tables.schemas import ID_COLUMNS, SCHEMAS

COPIED = "rows name files of another root, because this root was copied or moved: unused files cannot be told apart"


@dataclass(frozen=True)
class NamedFile:
    """A file that a row names."""

    row_id: str
    uri: str
    path: str  # on its file system
    size_bytes: int | None  # this and crc32: None where the table has no such column
    crc32: int | None


def named_files(root: str, table: str, every_attempt: bool = False) -> list[NamedFile]:
    """Files that the ok rows of a table name; with `every_attempt`, files that any row ever written names."""
    column, id_column = MEDIA_COLUMNS[table], ID_COLUMNS[table]
    facts = [name for name in ("size_bytes", "crc32") if name in SCHEMAS[table].names]
    where = None if every_attempt else pc.field("status") == "ok"
    rows = read_table(root, table, [id_column, column, *facts], where=where, newest=not every_attempt)
    files = []
    for row in rows.to_pylist():
        uris, sums = (value if isinstance(value, list) else [value] for value in (row[column], row.get("crc32")))
        sums += [None] * len(uris)  # rows of older versions have none
        files += [
            NamedFile(row[id_column], uri, storage.filesystem(uri)[1], row.get("size_bytes"), checksum)
            for uri, checksum in zip(uris, sums, strict=False)
            if uri
        ]
    return files


class EvaluatedModels(BaseModel):
    """The part of the figures of an evaluation that names its models."""

    models: ModelSet


def named_models(root: str, unreadable: Container[str] = ()) -> dict[tuple[str, str], str]:
    """Model folders of the root that rows name: (uri, hash) -> kind, as `changed_weights` takes them.

    These are trained models, the models of evaluations (among them untrained ones), and encoders of text features.
    unreadable: tables that are not read.
    """
    is_ok, models = pc.field("status") == "ok", {}
    if "models" not in unreadable:
        for row in read_table(root, "models", ["uri", "weights_hash"], where=is_ok).to_pylist():
            models[row["uri"], row["weights_hash"]] = "weights"
    if "evaluations" not in unreadable:
        for row in read_table(root, "evaluations", ["metrics"], where=is_ok).to_pylist():
            with contextlib.suppress(ValidationError):  # no JSON of ours
                evaluated = EvaluatedModels.model_validate_json(row["metrics"]).models
                trained = (evaluated.dit, evaluated.vae)
                models |= {(model.uri, model.hash): "weights" for model in trained}
                models[evaluated.encoder.uri, evaluated.encoder.hash] = "text"
    if "text_features" not in unreadable:
        rows = read_table(root, "text_features", ["encoder_hash"], where=is_ok)
        encoders = set(rows["encoder_hash"].unique().to_pylist())
        records = [record for record in hash_records(root) if record["hash"] in encoders]
        models |= {(record["uri"], record["hash"]): "text" for record in records}
    return {key: kind for key, kind in models.items() if inside(root, key[0]) == key[0]}


def media_files(root: str) -> dict[str, int]:
    """Size of every file under `<root>/media`, by path on its file system."""
    return _files(root, "media")


def _files(root: str, folder: str) -> dict[str, int]:
    fs, path = storage.filesystem(storage.join(root, folder))
    infos = dict(fs.find(path, detail=True)) if fs.exists(path) else {}
    return {name: info["size"] for name, info in infos.items()}


def unnamed_media(root: str, files: dict[str, int]) -> list[str]:
    """Media files that no row of any attempt names."""
    named_paths = {file.path for table in MEDIA_COLUMNS for file in named_files(root, table, every_attempt=True)}
    return sorted(set(files) - named_paths)


def is_copied(root: str, files: dict[str, int], unnamed: Sequence[str]) -> bool:
    """Whether the root was copied or moved: its rows name files, and none of them is a file of this root."""
    nothing_named = bool(files) and len(unnamed) == len(files)
    return nothing_named and any(named_files(root, table) for table in MEDIA_COLUMNS)


def half_written(root: str) -> list[str]:
    """Files under models/ whose writer was killed before they were complete."""
    return sorted(path for path in _files(root, "models") if "/.writing-" in path)


def spent_checkpoints(root: str) -> list[str]:
    """Folders under checkpoints/ of trainings that have not ended, or that another training has continued."""
    fs, top = storage.filesystem(storage.join(root, "checkpoints"))
    folders: list[str] = []
    with contextlib.suppress(FileNotFoundError):  # a folder marker in an object store exists, but cannot be listed
        folders = sorted(path for path in fs.ls(top, detail=False) if path.rstrip("/") != top.rstrip("/"))
    if not folders:
        return []
    rows = read_table(root, "models", ["model_id", "parent_id"], where=pc.field("status") == "ok")
    may_continue = set(rows["model_id"].to_pylist()) - set(rows["parent_id"].to_pylist())
    return [path for path in folders if path.rstrip("/").rpartition("/")[2] not in may_continue]


def empty_folders(root: str) -> list[str]:
    """Empty folders under media/ and models/ that a killed writer made."""
    fs, top = storage.filesystem(root)
    places = [place for place in (f"{top}/media", f"{top}/models") if fs.exists(place)]
    unfinished = [path for place in places for path in fs.find(place, withdirs=True) if "/.writing-" in path]
    return sorted(path for path in unfinished if fs.isdir(path) and not fs.ls(path))


def unnamed_parquet(root: str, table: str, older_than_h: int = 0, delete: bool = False) -> list[str]:
    """Parquet files, relative to the table, that no version of the table names; with `delete` they are removed."""
    delta = open_table(root, table)
    if delta is None:
        return []
    return delta.vacuum(
        older_than_h,
        dry_run=not delete,
        enforce_retention_duration=False,
        full=True,
        keep_versions=compacted_versions(delta) or None,
    )


def vacuum(root: str, older_than_h: int = 24, delete: bool = False) -> list[str]:
    """Find unused files and, with `delete`, remove them. Returns their paths below the root.

    Unused are: media files that no row names, Parquet files that no version of a table names, checkpoints of trainings
    that did not finish or that another training has continued, and answers of a caption model whose captions are in the
    table.

    Args:
        root: of the tables.
        older_than_h: age of the files, h. Newer files are not removed: a running step may be about to commit them.
        delete: whether to remove them.

    Raises:
        ValueError: the rows name files of another root, or the log of a table is damaged. In both cases files that are
            in use would look unused.
    """
    _check_logs(root)
    fs, top = storage.filesystem(root)
    now = datetime.now(UTC)
    files = media_files(root)
    unnamed = unnamed_media(root, files)
    if is_copied(root, files, unnamed):
        raise ValueError(f"{COPIED} ({root})")
    left_over = [
        path
        for path in (
            *(*unnamed, *half_written(root), *spent_checkpoints(root), *empty_folders(root)),
            *spent_answers(root, _attempts(root, "captions")),
        )
        if (now - _last_touched(fs, path)).total_seconds() >= older_than_h * 3600
    ]
    if delete and left_over:
        fs.rm(left_over, recursive=True)
        _remove_empty_folders(fs, {path.rpartition("/")[0] for path in left_over})
    for table in SCHEMAS:
        unnamed_files = unnamed_parquet(root, table, older_than_h)
        if delete and unnamed_files:  # each call with `delete` adds a commit to the log
            unnamed_parquet(root, table, older_than_h, delete=True)
        left_over += [f"{top}/tables/{table}/{name}" for name in unnamed_files]
    return [path.removeprefix(top + "/") for path in left_over]


def _check_logs(root: str) -> None:
    """Raise an error if the log of a table is damaged: `manifest repair` needs the files of the lost entries."""
    recorded = recorded_versions(root)
    for table in SCHEMAS:
        lost = [str(damage) for damage in log_damage(table_uri(root, table))]
        if not lost and (version := recorded.get(table, (-1, ""))[0]) > table_version(root, table):
            lost = [f"version {version}, which a run recorded, is missing"]
        if lost:
            raise ValueError(
                f"nothing is removed, since the log of table {table!r} is damaged ({lost[0]}): first run "
                f"pyramid manifest repair {root} --apply"
            )


def _attempts(root: str, table: str) -> dict[str, int]:
    """Newest attempt by id."""
    rows = read_table(root, table, [ID_COLUMNS[table], "attempt"])
    return dict(zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True))


def _last_touched(fs: fsspec.AbstractFileSystem, path: str) -> datetime:
    """Time at which a file, or the newest file in a folder, was written."""
    files = [name for name in fs.find(path) if not name.endswith("/")]  # object stores list markers of folders
    return max([fs.modified(name) for name in files], default=None) or fs.modified(path)


def _remove_empty_folders(fs: fsspec.AbstractFileSystem, folders: set[str]) -> None:
    for folder in folders:
        if "/.writing-" in folder and fs.isdir(folder) and not fs.ls(folder):
            fs.rmdir(folder)
