"""Hashes of columns of texts, by which repeated values are found with 8 bytes a row."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: spreads small numbers over 64 bits


def text_hashes(texts: pa.ChunkedArray) -> np.ndarray:
    """A hash of the first 16 characters of each text, uint64; of a content id these are 64 random bits."""
    return np.concatenate([np.empty(0, np.uint64), *map(_chunk_hashes, texts.chunks)])


def _chunk_hashes(texts: pa.Array) -> np.ndarray:
    padded = pc.ascii_rpad(pc.utf8_slice_codeunits(pc.fill_null(texts, ""), 0, 16), 16, padding="\0")
    # A character may have several bytes.
    cut = pc.binary_slice(padded.cast(pa.binary()), 0, 16).cast(pa.binary(16))
    data = memoryview(cut.buffers()[1])[16 * cut.offset : 16 * (cut.offset + len(cut))]
    halves = np.frombuffer(data, np.uint64).reshape(-1, 2)
    return halves[:, 0] * ODD + halves[:, 1]  # integer arrays of numpy wrap around


def may_repeat(rows: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """Whether another row may have the same values in the columns `keys`, (n,) bool; False is certain."""
    first, *others = (rows[name] for name in keys)
    hashes = text_hashes(first if pa.types.is_string(first.type) else first.cast(pa.string()))
    for column in others:
        codes = pc.fill_null(pc.index_in(column, value_set=pc.unique(column)), -1)
        hashes = hashes * ODD + codes.to_numpy().astype(np.uint64)
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
    return repeated[places] == hashes
