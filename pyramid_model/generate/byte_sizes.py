"""Amounts of memory as text, such as `8GiB`."""

import math
import re

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(text: str) -> int:
    """`8GiB`, `8 GB`, `900M` or a number of bytes -> bytes; letters mean powers of 1024.

    Raises:
        ValueError: the text is not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)(i?b)?\s*", text.lower())
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if not match or number <= 0:
        raise ValueError(f"{text!r} is not an amount of memory: write it like 8GiB or 900MiB")
    return int(number * UNITS[match[2]])


def format_bytes(size: int) -> str:
    """Text for a number of bytes, rounded up: `7.48 GiB`, `52.1 MiB`; `parse_bytes` can read it."""
    if size < UNITS["g"]:
        return f"{math.ceil(size / UNITS['m'] * 10) / 10:.1f} MiB"
    return f"{math.ceil(size / UNITS['g'] * 100) / 100:.2f} GiB"
