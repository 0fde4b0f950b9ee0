"""Videos in WebDataset shards: tar files in which `<key>.mp4` lies beside `<key>.json` and `<key>.txt`.

A shard is read in place, by the offsets of its members. Nothing is unpacked, so member names cannot overwrite files.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from tasks.sources.list_formats import Annotation
from tasks.tables import storage
from tasks.tables.plain_text import cut, shown
from tasks.tables.web_hosts import Allowed

VIDEO = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv"),
    *(".ogv", ".3gp", ".mxf", ".vob", ".gif"),
)
MAX_TEXT_BYTES = 2**20  # of a member that describes a video; longer members are ignored
MAX_TEXTS_BYTES = 512 * 2**20  # of all such members of an archive, which are in memory at the same time
MAX_HEADER_BYTES = 2 * 2**20  # of a member's header: a header of a few bytes may claim a name of terabytes
MAX_MEMBERS = 10**6
TEXT_KEYS = ("caption", "text")


@dataclass(frozen=True)
class Member:
    """A video in an archive."""

    name: str
    offset: int  # byte in the archive at which the video starts
    size_bytes: int
    annotations: tuple[Annotation, ...] = ()
    problem: str = ""  # why the member cannot be read; "" if it can


def members(uri: str, hosts: Allowed = ()) -> Iterator[Member]:
    """The videos of an archive in its order, with the annotations of the members that have the same key.

    hosts: as `storage.filesystem`.

    Raises:
        ValueError: the file is not a tar file, is compressed, or is truncated (raised after the complete members).
    """
    fs, path = storage.filesystem(uri, hosts)
    descriptions: dict[str, dict[str, bytes]] = {}  # by key and suffix
    videos: list[tuple[str, tarfile.TarInfo]] = []  # (key, member)
    shared: dict[str, bool] = {}  # whether several videos have this key
    damage, num_bytes = "", 0
    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=cast(Any, _BoundedReads(file)), mode="r:") as archive:
            for number, member in enumerate(archive):
                cast(Any, archive).members.clear()  # tarfile keeps them all
                if number >= MAX_MEMBERS:
                    raise ValueError(f"it has more than {MAX_MEMBERS} members: split it into several archives")
                key, suffix = _key(member.name)
                if suffix in VIDEO:
                    videos.append((key, member))
                    shared[key] = key in shared
                elif suffix in (".json", ".txt") and member.isreg() and member.size <= MAX_TEXT_BYTES:
                    content = archive.extractfile(member)
                    text = content.read() if content else b""
                    for name in {key, member.name.removesuffix(PurePosixPath(member.name).suffix)}:
                        descriptions.setdefault(name, {})[suffix] = text
                    num_bytes += member.size
                    if num_bytes > MAX_TEXTS_BYTES:
                        raise ValueError(f"its texts have more than {MAX_TEXTS_BYTES} bytes: split the archive")
    # tarfile raises errors of all kinds for malformed headers: of memory, overflow, recursion, arithmetic.
    except (tarfile.TarError, OSError, ValueError, EOFError, MemoryError, ArithmeticError, LookupError) as err:
        damage = f"{uri} cannot be read as an uncompressed tar file: {type(err).__name__}: {cut(str(err), 500)}"
    except (RecursionError, TypeError, AttributeError) as err:
        damage = f"{uri} cannot be read as an uncompressed tar file: {type(err).__name__}: {cut(str(err), 500)}"
    for key, member in videos:
        # The whole name without its suffix counts before the key, which several videos may share.
        stem = member.name.removesuffix(PurePosixPath(member.name).suffix)
        described = descriptions.get(stem) or ({} if shared[key] else descriptions.get(key, {}))
        yield _video(member, described, fs.size(path))
    if damage:
        raise ValueError(damage)


class _BoundedReads:
    """A file for tarfile, which reads as many bytes at once as the header of a member claims.

    file: binary file with `read`, `seek` and `tell`.
    """

    def __init__(self, file: Any):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            ValueError: more than MAX_HEADER_BYTES are asked for.
        """
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes, more than {MAX_HEADER_BYTES}")
        return self.file.read(size)


def _key(name: str) -> tuple[str, str]:
    """(key of the sample, last suffix) of a member. The key ends at the first dot of the file name."""
    match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", name, re.DOTALL)
    return (match[1], PurePosixPath(name).suffix.lower()) if match else (name, "")


def _video(member: tarfile.TarInfo, description: dict[str, bytes], archive_bytes: int | None) -> Member:
    if not member.isreg() or member.issparse():
        return Member(member.name, 0, 0, problem=f"{member.name} is a link or a sparse file in its archive")
    end = member.offset_data + member.size
    if member.size < 0 or (archive_bytes is not None and end > archive_bytes):
        problem = f"{member.name} claims {shown(member.size)} bytes, which the archive does not have"
        return Member(member.name, 0, 0, problem=problem)
    return Member(member.name, member.offset_data, member.size, _annotations(description))


def _annotations(description: dict[str, bytes]) -> tuple[Annotation, ...]:
    """Caption of the whole video with the other values of the JSON member; empty if there is no caption.

    description: contents of the members with the key of the video, by suffix.
    """
    try:
        values = json.loads(description.get(".json", b"{}"))
    except (ValueError, RecursionError):
        values = {}
    values = values if isinstance(values, dict) else {}
    texts = [description.get(".txt", b"").decode("utf-8", "replace"), *(values.get(key) for key in TEXT_KEYS)]
    text = next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")
    if not text:
        return ()
    rest = {key: value for key, value in values.items() if key not in (*TEXT_KEYS, "start_s", "end_s")}
    return ({"start_s": None, "end_s": None, "text": text} | rest,)
