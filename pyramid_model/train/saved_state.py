"""Files of training states: their checksums are compared before anything of them is used."""

import zipfile
from pathlib import Path
from typing import Any

import torch

KEYS = ("objective", "optimizer", "ema", "step", "curve")


class DamagedCheckpoint(ValueError):
    """A checkpoint cannot be used; the message names the file, the reason and the remedy."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(
            f"checkpoint {path} cannot be used: {reason}. Remove it, and the training continues from the checkpoint "
            "before it, if there is one, or starts again"
        )


def previous_of(path: str | Path) -> str:
    """Path or URI of the checkpoint that was written before this one."""
    return f"{path}.before"


def read_state(path: str | Path, name: str = "") -> dict[str, Any]:
    """Content of a checkpoint on the CPU; no code in the file is run.

    torch.save writes a zip file with a CRC-32 for each tensor, which torch.load does not compare.

    Args:
        path: local file.
        name: of the file in messages; empty: the path.

    Raises:
        DamagedCheckpoint: it is cut off, empty, changed by a single bit, or something else.
    """
    name = name or str(path)
    size = Path(path).stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # unpickling of a damaged file can raise any exception
        kind = "it is empty" if size == 0 else f"it is cut off, or no checkpoint ({type(err).__name__}, {size:,} bytes)"
        raise DamagedCheckpoint(name, kind) from None
    if damaged:
        raise DamagedCheckpoint(name, f"its bytes have changed, for the checksum of {damaged[:100]} differs")
    if not isinstance(content, dict) or not set(KEYS) <= content.keys():
        raise DamagedCheckpoint(name, f"it does not hold {', '.join(KEYS)}")
    return content
