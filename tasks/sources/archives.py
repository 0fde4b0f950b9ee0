"""Videos in WebDataset shards: tar files in which `<key>.mp4` lies beside `<key>.json` and `<key>.txt`.

A shard is read in place: a member is found by where its bytes start; nothing is unpacked under a name that it gives.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tasks.tables import storage

VIDEO = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv"),
    *(".ogv", ".3gp", ".mxf", ".vob", ".gif"),
)
MAX_TEXT_BYTES = 2**20  # of a member that describes a video; longer ones are no captions
TEXT_KEYS = ("caption", "text")


@dataclass(frozen=True)
class Member:
    """A video in an archive."""

    name: str
    offset: int  # of its first byte in the archive
    size_bytes: int
    annotations: tuple[dict[str, Any], ...] = ()
    problem: str = ""  # why it cannot be read


def members(uri: str) -> Iterator[Member]:
    """The videos of an archive in its order, each with what its neighbours say of it; other members are left out.

    Raises:
        ValueError: it is no tar file, is compressed, or ends in the middle (after the members that are whole).
    """
    fs, path = storage.filesystem(uri)
    told: dict[str, dict[str, Any]] = {}
    found: list[tuple[str, tarfile.TarInfo]] = []
    damage = ""
    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:  # type: ignore[arg-type]
            for member in archive:
                key, suffix = _key(member.name)
                if suffix in VIDEO:
                    found.append((key, member))
                elif suffix in (".json", ".txt") and member.isreg() and member.size <= MAX_TEXT_BYTES:
                    content = archive.extractfile(member)
                    told.setdefault(key, {})[suffix] = content.read() if content else b""
    except (tarfile.TarError, OSError, ValueError, EOFError) as err:
        damage = f"{uri} cannot be read as an uncompressed tar file: {type(err).__name__}: {err}"
    for key, member in found:
        yield _video(member, told.get(key, {}))
    if damage:
        raise ValueError(damage)


def _key(name: str) -> tuple[str, str]:
    """What the members of one sample share, and the last suffix: the key ends at the first dot of the file's name."""
    found = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", name, re.DOTALL)
    return (found[1], PurePosixPath(name).suffix.lower()) if found else (name, "")


def _video(member: tarfile.TarInfo, told: dict[str, bytes]) -> Member:
    if not member.isreg() or member.issparse():
        return Member(member.name, 0, 0, problem=f"{member.name} is a link or a sparse file in its archive")
    return Member(member.name, member.offset_data, member.size, _annotations(told))


def _annotations(told: dict[str, bytes]) -> tuple[dict[str, Any], ...]:
    """The caption of a whole video and what else is said of it; nothing when no caption is among it."""
    try:
        values = json.loads(told.get(".json", b"{}"))
    except (ValueError, RecursionError):
        values = {}
    values = values if isinstance(values, dict) else {}
    texts = [told.get(".txt", b"").decode("utf-8", "replace"), *(values.get(key) for key in TEXT_KEYS)]
    text = next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")
    if not text:
        return ()
    rest = {key: value for key, value in values.items() if key not in (*TEXT_KEYS, "start_s", "end_s")}
    return ({"start_s": None, "end_s": None, "text": text} | rest,)
