"""Ids of rows, which are hashes of everything that a row depends on, and checksums of stored bytes."""

import hashlib
import json
import zlib

# Created once, since steps compute hundreds of thousands of ids.
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def content_id(*parts: object) -> str:
    """32 hex digits of blake2b-128 over the canonical JSON of `parts` (bytes are hashed unchanged)."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else CANONICAL.encode(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def crc32(*blobs: bytes | memoryview) -> int:
    """CRC-32 of the concatenated blobs."""
    value = 0
    for blob in blobs:
        value = zlib.crc32(blob, value)
    return value
