"""Tensors as the bytes of binary columns; `tasks.blob_reader` reads them back."""

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CorruptBlobError(ValueError):
    """Stored bytes are not what was written."""


def tensor_bytes(tensor: Tensor, dtype: str) -> bytes:
    """Values of a tensor as bytes of that type, row-major."""
    return tensor.detach().to("cpu", DTYPES[dtype]).contiguous().view(torch.uint8).numpy().tobytes()
