"""Prompts that a recipe gives: in a list, in a file, or both."""

from collections.abc import Sequence

from tasks.tables import storage


def read_prompts(prompts: Sequence[str], file: str) -> list[str]:
    """The prompts of the list, then those of the file (one a line, `#` begins a comment), each once.

    Raises:
        ValueError: the file is missing or is no text.
    """
    lines: list[str] = []
    if file:
        try:
            lines = storage.read_bytes(file).decode().splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise ValueError(f"cannot read prompts_file {file!r}: {err}; give a text file, one prompt a line") from err
    kept = [*prompts, *(line for line in lines if not line.lstrip().startswith("#"))]
    cleaned = (" ".join(line.split()) for line in kept)
    return list(dict.fromkeys(line for line in cleaned if line))
