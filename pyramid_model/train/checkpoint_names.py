"""Names of checkpoints and of their files. Imports no torch."""

from __future__ import annotations

WHOLE = "whole.json"  # in the folder of a checkpoint; written last


def checkpoint_name(step: int) -> str:
    """Name of the folder of a checkpoint, `step-00000012`; names sort like steps."""
    return f"step-{step:08}"


def step_of(name: str) -> int | None:
    """Step of the checkpoint in a folder of this name; None if the folder is no checkpoint."""
    number = name.removeprefix("step-")
    return int(number) if number != name and number.isdecimal() else None
