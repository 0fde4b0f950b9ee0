"""Checks of the log of a table: its entries, checkpoints, and the versions that runs recorded."""

import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.tables import storage

ENTRY = re.compile(r"(\d{20})\.json$")
CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(\..+)?\.parquet$")
HINT = "_last_checkpoint"
CHECKPOINT_INTERVAL = 32  # versions


@dataclass(frozen=True)
class LogDamage:
    """A damaged or missing file of the log of a table. version: of a log entry; None for a checkpoint or the hint."""

    path: str
    problem: str
    version: int | None = None

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


def log_folder(table_uri: str) -> str:
    """URI of the folder of the log."""
    return storage.join(table_uri, "_delta_log")


def entry_name(version: int) -> str:
    """Name of the log entry of a version."""
    return f"{version:020d}.json"


def log_damage(table_uri: str) -> list[LogDamage]:
    """Damaged and missing files of the log of a table, checkpoints first; empty for a table that was never written."""
    uri = log_folder(table_uri)
    fs, folder = storage.filesystem(uri)
    names = {path.rpartition("/")[2] for path in fs.ls(folder, detail=False)} if fs.exists(folder) else set()
    entries = sorted(int(match[1]) for name in names if (match := ENTRY.fullmatch(name)))
    checkpoints = {name: int(match[1]) for name in names if (match := CHECKPOINT.fullmatch(name))}
    bad = [
        LogDamage(f"{folder}/{name}", problem)
        for name in sorted(checkpoints)
        if (problem := _checkpoint_problem(f"{uri}/{name}"))
    ]
    damaged = {damage.path.rpartition("/")[2] for damage in bad}
    usable = {version for name, version in checkpoints.items() if name not in damaged}
    if HINT in names and (problem := _hint_problem(storage.read_bytes(f"{uri}/{HINT}"), usable)):
        bad.append(LogDamage(f"{folder}/{HINT}", problem))
    for version in entries:
        if problem := _entry_problem(storage.read_bytes(f"{uri}/{entry_name(version)}")):
            bad.append(LogDamage(f"{folder}/{entry_name(version)}", problem, version))
    missing = [LogDamage(f"{folder}/{entry_name(v)}", "is missing", v) for v in _missing(entries, usable)]
    return sorted(bad + missing, key=lambda damage: -1 if damage.version is None else damage.version)


def newest_damage(table_uri: str, version: int) -> LogDamage | None:
    """Damage of an entry that readers of a version apply after the newest checkpoint; None if there is none.

    delta-rs takes an empty entry, or one that ends between two lines, for a commit without rows. Only local folders are
    looked at: an object store writes an entry whole or not at all.
    """
    if not storage.is_local(table_uri):
        return None
    _, folder = storage.filesystem(log_folder(table_uri))
    for number in range(version, max(-1, version - CHECKPOINT_INTERVAL), -1):
        path = f"{folder}/{entry_name(number)}"
        try:
            facts = os.stat(path)
        except FileNotFoundError:
            continue  # removed after a checkpoint, or an error of delta-rs
        if problem := _problem_of_file(path, facts.st_size, facts.st_mtime_ns):
            return LogDamage(path, problem, number)
    return None


@functools.lru_cache(maxsize=4096)
def _problem_of_file(path: str, size_bytes: int, _mtime_ns: int) -> str:
    """`_entry_problem` of a local file, remembered while its size and time stay the same."""
    return _entry_problem(storage.read_bytes(path)) if size_bytes else _entry_problem(b"")


def _missing(entries: list[int], checkpoints: set[int]) -> list[int]:
    """Versions without an entry. The entries before the oldest one are not missing if a checkpoint replaces them."""
    if not entries:
        return []
    oldest = entries[0] if any(version >= entries[0] - 1 for version in checkpoints) else 0
    return sorted(set(range(oldest, entries[-1])) - set(entries))


def _checkpoint_problem(uri: str) -> str:
    fs, path = storage.filesystem(uri)
    try:
        with fs.open(path, "rb") as file:
            pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as err:
        return f"is not a whole Parquet file ({str(err)[:100]})"
    return ""


def _hint_problem(data: bytes, checkpoints: set[int]) -> str:
    """What is wrong with the file that names the newest checkpoint. checkpoints: versions of those that are whole."""
    try:
        version = json.loads(data)["version"]
    except (ValueError, KeyError, TypeError):
        return "is not valid JSON with a version"
    return "" if version in checkpoints else f"names the checkpoint of version {version}, which is missing or damaged"


def _entry_problem(data: bytes) -> str:
    """What is wrong with the content of a log entry: each line is a JSON object, and a write adds or removes a file."""
    lines = data.splitlines()
    try:
        actions = [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return f"is damaged: line {_first_bad(lines)} is not valid JSON"
    if not actions or not all(isinstance(action, dict) for action in actions):
        return "is empty" if not actions else "is damaged: a line is not a JSON object"
    kinds = {kind for action in actions for kind in action}
    infos = [action["commitInfo"] for action in actions if "commitInfo" in action]
    if infos and infos[0].get("operation") == "WRITE" and not kinds & {"add", "remove", "metaData"}:
        return "is damaged: it is a write, and names no file"
    return "" if infos else "is damaged: it does not say which operation it is"


def _first_bad(lines: list[bytes]) -> int:
    """Number of the first line that is not JSON."""
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line or b"0")
        except ValueError:
            return number
    return len(lines)


def recorded_versions(root: str) -> dict[str, tuple[int, str]]:
    """The greatest version of each table that a result under `<root>/runs/` states, and the path of that result."""
    greatest: dict[str, tuple[int, str]] = {}
    for path, result in _results(root):
        for table, version in result.items():
            if version > greatest.get(table, (-1, ""))[0]:
                greatest[table] = (version, path)
    return greatest


def _results(root: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Path and table versions of each result of a step."""
    fs, folder = storage.filesystem(storage.join(root, "runs"))
    for path in sorted(fs.glob(f"{folder}/*/*.json")):
        try:
            versions = json.loads(fs.cat_file(path))["versions"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # another file of a run, or the result of a run that was killed
        if isinstance(versions, dict) and all(isinstance(version, int) for version in versions.values()):
            yield str(path), versions
