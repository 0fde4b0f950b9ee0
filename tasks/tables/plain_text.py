"""Texts from elsewhere (names, captions, messages) before they are shown: cut off, and without control characters."""

import html
import re
import reprlib
import unicodedata
from typing import Any

MAX_VALUE = 200  # characters of a value in a message
MAX_MESSAGE = 4000  # characters of a message
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # first characters of cells that a spreadsheet computes
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # Unicode categories: control, format, surrogate, private, separators
_JOINERS = "\u200c\u200d"  # parts of words and of emoji

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = MAX_VALUE
_REPR.maxlevel = 3


def cut(text: str, limit: int = MAX_MESSAGE) -> str:
    """A text of at most `limit` characters; the end of a longer one is replaced by `…`."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def shown(value: Any) -> str:
    """A value for a message, as Python writes it, of at most MAX_VALUE characters; values inside it are left out."""
    try:
        return cut(_REPR.repr(value), MAX_VALUE)
    except ValueError:  # an integer of thousands of digits
        return f"a value of type {type(value).__name__}"


def visible(text: str, keep: str = "\n\t") -> str:
    """A text in which control characters, and marks that turn the direction of writing, are written as `\\x1b`.

    keep: characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if sign in keep or not _is_hidden(sign) else _escaped(sign) for sign in text)


def _is_hidden(sign: str) -> bool:
    return unicodedata.category(sign) in _HIDDEN and sign not in _JOINERS


def _escaped(sign: str) -> str:
    code = ord(sign)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Markdown(str):
    """Text that is Markdown already."""


def markdown(text: str) -> str:
    """A text as one line of Markdown, escaped: it cannot format the page, show a picture or insert HTML."""
    line = " ".join(visible(text, keep="\n\t").split())
    return re.sub(r"([\\`*\[\]!|~$])", r"\\\1", html.escape(line, quote=False))


def code_span(text: str) -> str:
    """A path or name for a Markdown page, in the type of code."""
    return f"`{visible(text, keep='').replace('`', chr(39))}`"


def spreadsheet_cell(value: Any) -> Any:
    """A value for a CSV file: text that a spreadsheet would compute as a formula gets a `'` before it."""
    if not isinstance(value, str) or not value.lstrip(" ").startswith(FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
