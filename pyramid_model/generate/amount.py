"""Amounts of memory as people write them."""

import math
import re

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(text: str) -> int:
    """`8GiB`, `8 GB`, `900M` or a number of bytes -> bytes; letters mean powers of 1024.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)(i?b)?\s*", text.lower())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or number <= 0:
        raise ValueError(f"{text!r} is no amount of memory: write it like 8GiB or 900MiB")
    return int(number * UNITS[found[2]])


def written(size: int) -> str:
    """Bytes as `parse_bytes` reads them, rounded up: `7.48 GiB`, `52.1 MiB`."""
    if size < UNITS["g"]:
        return f"{math.ceil(size / UNITS['m'] * 10) / 10:.1f} MiB"
    return f"{math.ceil(size / UNITS['g'] * 100) / 100:.2f} GiB"
