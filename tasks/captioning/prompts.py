"""Prompts of a recipe, from a list and from a file."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from tasks.sources.list_formats import TEXT
from tasks.sources.list_rows import DELIMITERS, names_of
from tasks.tables import storage
from tasks.tables.plain_text import shown

COLUMNS = ("prompt", "prompt_en", *(name for name in TEXT if name != "prompt"))  # prompt_en: VBench's full_info.json


def read_prompts(prompts: Sequence[str], file: str) -> list[str]:
    """The prompts of the list, then those of the file, without repetitions.

    A file is read as what its suffix says: CSV or TSV with a column of COLUMNS; JSON with an array or JSON lines, of
    texts or of objects with one of COLUMNS (VBench's full_info.json is such an array); else text with one prompt per
    line, in which `#` starts a comment line.

    Raises:
        ValueError: the file is missing, is not UTF-8 text, or has no prompts where they are expected.
    """
    texts = [*prompts, *(_of_file(file) if file else ())]
    cleaned = (" ".join(text.split()) for text in texts)
    return list(dict.fromkeys(text for text in cleaned if text))


def _of_file(file: str) -> list[str]:
    try:
        text = storage.read_bytes(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise ValueError(
            f"cannot read prompts_file {file!r}: {err}; give a text file with one prompt per line"
        ) from err
    suffix = PurePosixPath(file).suffix.lower()
    try:
        if suffix == ".json":
            return _of_entries(json.loads(text), file)
        if suffix == ".jsonl":
            return _of_entries([json.loads(line) for line in text.splitlines() if line.strip()], file)
    except (json.JSONDecodeError, RecursionError) as err:
        raise ValueError(f"prompts_file {file!r} is not JSON: {err}") from err
    if suffix in (".csv", ".tsv"):
        return _of_table(text, file)
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def _of_entries(content: object, file: str) -> list[str]:
    """Prompts of an array whose entries are texts or objects; an object alone is an array of one."""
    entries = content if isinstance(content, list) else [content]
    texts = [_of_row(entry) if isinstance(entry, dict) else entry for entry in entries]
    if bad := next((entry for entry, text in zip(entries, texts, strict=True) if not isinstance(text, str)), None):
        raise ValueError(f"prompts_file {file!r} has an entry without a prompt: {shown(bad)}; {_expected()}")
    return [text for text in texts if isinstance(text, str)]


def _of_table(text: str, file: str) -> list[str]:
    """Prompts of a table with the names of its columns in the first line."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    marks = [mark for mark in DELIMITERS if _column(names_of(first, mark))]
    if not marks:
        raise ValueError(
            f"prompts_file {file!r} has no column of prompts in its first line {shown(first)}; {_expected()}"
        )
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=marks[-1], skipinitialspace=True)
    column = _column(reader.fieldnames or ())
    return [row[column] or "" for row in reader]


def _column(names: Iterable[str]) -> str:
    """The first of COLUMNS that occurs in these names, in their upper and lower case; "" if none does."""
    written = {name.strip().lower(): name for name in names}
    return next((written[name] for name in COLUMNS if name in written), "")


def _of_row(row: dict[str, object]) -> object:
    column = _column(row)
    return row[column] if column else None


def _expected() -> str:
    return f"give one of the columns {', '.join(COLUMNS[:5])}, or a text file with one prompt per line"
