"""Prompts of a recipe, from a list and from a file."""

from collections.abc import Sequence

from tasks.tables import storage


def read_prompts(prompts: Sequence[str], file: str) -> list[str]:
    """The prompts of the list, then those of the file (one per line, `#` starts a comment line), without repetitions.

    Raises:
        ValueError: the file is missing or is not UTF-8 text.
    """
    lines: list[str] = []
    if file:
        try:
            lines = storage.read_bytes(file).decode().splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise ValueError(
                f"cannot read prompts_file {file!r}: {err}; give a text file with one prompt per line"
            ) from err
    texts = [*prompts, *(line for line in lines if not line.lstrip().startswith("#"))]
    cleaned = (" ".join(line.split()) for line in texts)
    return list(dict.fromkeys(line for line in cleaned if line))
