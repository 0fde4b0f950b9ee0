"""Hash of the contents of several files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def files_hash(folder: Path, files: Iterable[Path]) -> str:
    """Hash of several files, 32 hex digits: blake2b over names (relative to the folder), sizes and bytes, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while chunk := file.read(4 * 2**20):
                digest.update(chunk)
    return digest.hexdigest()
