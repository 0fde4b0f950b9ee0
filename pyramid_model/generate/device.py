"""The device and the precision that models work in."""

from __future__ import annotations

import warnings

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FLOAT16_WARNING = (
    "the released models were trained in bfloat16 and give black frames in float16: use float32 on a device without "
    "bfloat16"
)


def working_device(name: str = "") -> torch.device:
    """The device of that name; empty: the best one available.

    Raises:
        ValueError: this machine, or its PyTorch, has no such device.
    """
    device = torch.device(name or best_device())
    is_available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(
        device.type, lambda: True
    )
    if not is_available():
        raise ValueError(f"device {name!r}: PyTorch finds none on this machine. Take cpu, or leave it empty (device)")
    return device


def best_device() -> str:
    """cuda, mps or cpu, whichever comes first on this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def torch_dtype(name: str) -> torch.dtype:
    """The precision of that name; warns about float16, in which the released models overflow.

    Raises:
        ValueError: no precision has that name.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: use one of {', '.join(DTYPES)}")
    if name == "float16":
        warnings.warn(FLOAT16_WARNING, stacklevel=3)
    return DTYPES[name]
