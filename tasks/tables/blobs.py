"""Tensors in binary columns: bytes with shape, dtype and a checksum that is verified on reading."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from tasks.tables.content_ids import crc32
from tasks.tables.rows import EmbeddingRow

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CorruptBlobError(ValueError):
    """The stored bytes are not the bytes that were written."""


def tensor_bytes(tensor: Tensor, dtype: str) -> bytes:
    """Values of a tensor as bytes of a dtype, row-major. dtype: a key of DTYPES."""
    return tensor.detach().to("cpu", DTYPES[dtype]).contiguous().view(torch.uint8).numpy().tobytes()


def bytes_tensor(data: bytes, shape: Iterable[int], dtype: str) -> Tensor:
    """Inverse of `tensor_bytes`: a float32 tensor with its own memory.

    Raises:
        CorruptBlobError: the length does not match the shape.
    """
    shape = tuple(shape)
    expected = int(np.prod(shape)) * DTYPES[dtype].itemsize
    if len(data) != expected:
        raise CorruptBlobError(f"{len(data)} bytes, expected {expected} for {dtype} {shape}")
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).reshape(shape).float()


def embedding_of(row: EmbeddingRow) -> Tensor:
    """Features of the sampled frames of a clip, (n d) float32 of unit length, from a row of `embeddings`.

    Raises:
        CorruptBlobError: the checksum or the length is wrong.
    """
    _check(row, row["embedding"])
    features = bytes_tensor(row["embedding"], row["shape"], row["dtype"])
    return torch.nn.functional.normalize(features, dim=-1)  # storing in half precision changes the norm slightly


def _check(row: EmbeddingRow, *blobs: bytes) -> None:
    checksum = crc32(*blobs)
    if checksum != row["crc32"]:
        raise CorruptBlobError(f"crc32 is {checksum:08x}, expected {row['crc32']:08x}")
