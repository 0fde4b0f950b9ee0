"""Prompts that a recipe gives: in a list, in a file, or both."""

from collections.abc import Sequence

from tasks import storage


def read_prompts(prompts: Sequence[str], file: str) -> list[str]:
    """The prompts of the list, then those of the file (one a line; empty lines and `#` comments left out), each once.

    Raises:
        ValueError: the file is missing or is no text.
    """
    lines = list(prompts)
    if file:
        try:
            lines += storage.read_bytes(file).decode().splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise ValueError(f"cannot read prompts_file {file!r}: {err}; give a text file, one prompt a line") from err
    cleaned = (" ".join(line.split()) for line in lines)
    return list(dict.fromkeys(line for line in cleaned if line and not line.startswith("#")))
