"""`source.yaml`: name, licences, splits and captions of a folder of videos, as its owner gives them."""

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pyramid_model.config import Config
from tasks.tables import storage
from tasks.tables.plain_text import cut, shown
from tasks.tables.rows import SourceRow
from tasks.tables.web_hosts import Allowed
from tasks.tables.yaml_text import MAX_BYTES, parse_yaml

NAME = "source.yaml"
MAX_PROBLEMS = 10  # of one card, in a message
Split = Literal["train", "val", "test"]


class FileCard(Config):
    """One file of the source."""

    path: str = Field(description="relative to the folder of source.yaml")
    sha256: str = Field(default="", description="checksum; a file that differs becomes a failed row")
    license: str = Field(default="", max_length=1000, description="licence, if it differs from that of the source")
    title: str = ""
    origin: str = ""
    changes: str = ""
    cuts: tuple[int, ...] | None = Field(default=None, description="first frame of each new shot, checked by hand")


class SplitPin(Config):
    """Assigns a file, or a span of it, to a split, instead of the split by hash."""

    file: str = Field(description="relative to the folder of source.yaml")
    split: Split
    start_s: float | None = Field(
        default=None, ge=0, description="seconds after the first frame; empty: from the beginning"
    )
    end_s: float | None = Field(default=None, gt=0, description="seconds after the first frame; empty: to the end")

    @model_validator(mode="after")
    def _start_before_end(self) -> "SplitPin":
        if self.start_s is not None and self.end_s is not None and self.start_s >= self.end_s:
            raise ValueError(f"start_s {self.start_s:g} is not before end_s {self.end_s:g}")
        return self


class SourceCard(Config):
    """Content of a `source.yaml`."""

    name: str = Field(max_length=200, description="short name, stored in the column `source`")
    license: str = Field(default="", max_length=1000, description="licence of the whole source, as an SPDX expression")
    attribution: str = ""
    url: str = ""
    captions: str = Field(default="", description="CSV of captions by time, relative to the folder of source.yaml")
    files: tuple[FileCard, ...] = ()
    splits: tuple[SplitPin, ...] = ()

    def file(self, path: str) -> FileCard:
        """Entry of one file; an entry with defaults if the card does not list the file."""
        return next((file for file in self.files if file.path == path), FileCard(path=path))

    def license_of(self, path: str) -> str:
        """Licence of one file."""
        return self.file(path).license or self.license

    def pins_of(self, path: str) -> tuple[SplitPin, ...]:
        """Split pins of one file."""
        return tuple(pin for pin in self.splits if pin.file == path)


def card_uri(folder: str) -> str:
    """URI of the card of a folder, whether or not it exists."""
    return f"{folder.rstrip('/')}/{NAME}"


def cards_of(sources: Sequence[SourceRow]) -> list[str]:
    """URI of the source.yaml of each row of `sources`; "" if there is none.

    A row without the column `card`, from an older root or an import, has the card of the folder that its path is
    relative to, if that exists.

    sources: with the columns `uri`, `path` and `card`.
    """
    exists: dict[str, bool] = {"": False}
    cards = []
    for row in sources:
        if row["card"] is not None:
            cards.append(row["card"])
            continue
        file = row["uri"] or ""
        is_local_path = file.endswith(f"/{row['path']}") and "://" not in file
        uri = card_uri(file.removesuffix(row["path"])) if is_local_path else ""
        if uri not in exists:
            exists[uri] = storage.exists(uri)
        cards.append(uri if exists[uri] else "")
    return cards


def read_card(uri: str) -> SourceCard:
    """Read and check a `source.yaml`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not YAML, or keys or values in it are wrong; the message lists them.
    """
    return _card(uri, parse_yaml(storage.read_bytes(uri, MAX_BYTES), uri))


def read_web_card(uri: str, hosts: Allowed = ()) -> SourceCard | None:
    """Read a `source.yaml` from a web host; None if the answer is something else, since many hosts answer anything.

    hosts: as `storage.filesystem`.

    Raises:
        ValueError: as `read_card`, if most keys of the answer are those of a card.
    """
    keys = "|".join(SourceCard.model_fields)
    try:
        text = storage.read_bytes(uri, MAX_BYTES, hosts).decode("utf-8-sig")
    except ValueError:  # too large, or not text
        return None
    try:
        content = parse_yaml(text, uri)
    except ValueError:
        if re.search(rf"^(?:{keys}) *:", text, re.MULTILINE):
            raise
        return None
    if not isinstance(content, dict) or 2 * len(content.keys() & SourceCard.model_fields.keys()) <= len(content):
        return None
    return _card(uri, content)


def _card(uri: str, content: object) -> SourceCard:
    """The checked content of a card.

    Raises:
        ValueError: keys or values are wrong.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{uri} must be a mapping with the keys {', '.join(SourceCard.model_fields)}")
    try:
        return SourceCard.model_validate({"name": PurePosixPath(uri).parent.name} | content)
    except ValidationError as err:
        problems = [_problem(problem) for problem in err.errors()]
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise ValueError(f"{uri} is wrong: " + "; ".join(problems[:MAX_PROBLEMS]) + more) from None


def _problem(problem: ErrorDetails) -> str:
    """Sentence about one wrong key or value."""
    name = cut(".".join(map(str, problem["loc"])), 100)
    if problem["type"] == "extra_forbidden":
        return f"there is no key {name!r}.{_nearest(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name} = {shown(problem['input'])}: {problem['msg'].removeprefix('Value error, ')}"


def _nearest(loc: Sequence[str | int]) -> str:
    """The most similar key, as a suggestion, and all keys of that part of the card."""
    *outer, last = loc
    part = str(outer[0]) if outer else NAME
    keys = list({"files": FileCard, "splits": SplitPin}.get(part, SourceCard).model_fields)
    near = difflib.get_close_matches(cut(str(last), 100), keys, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Keys of {part}: {', '.join(keys)}"
