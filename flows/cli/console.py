"""The terminal: texts from elsewhere are shown as they are, without markup and without control characters.

All output of the CLI goes through this module. Styles are given as `rich.text.Text`, never as markup inside a string.
"""

import json
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.text import Text

from tasks.tables.plain_text import visible
from tasks.tables.url_secrets import text_without_secrets


class PlainConsole(Console):
    """A console that reads no markup or emoji codes in strings, and writes control characters as `\\x1b`."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: Any = None) -> Iterable[Segment]:
        """As `Console.render`; only the control codes of rich itself stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line of strings, and of pairs of a string and its style."""
    return Text.assemble(*parts)


def echo(text: object) -> None:
    """Print a line on standard output, without colours."""
    typer.echo(visible(text_without_secrets(str(text))))


def echo_json(value: object, indent: int | None = None) -> None:
    """Print a value as JSON for programs: names are unchanged, in ASCII."""
    typer.echo(json.dumps(value, indent=indent))
