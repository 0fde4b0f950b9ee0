"""Write docs/settings.md, the list of every setting of a recipe, from the configs: `uv run python docs/write_settings.py`.

With `--stdout` it prints instead; a test compares that with the file.
"""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows.recipe import Recipe

HEAD = """# Settings

All settings of a recipe, with their defaults; `--set` can change each of them. `docs/write_settings.py` writes this page from the configs; do not edit it. How recipes work: [recipes.md](recipes.md).
"""


def page() -> str:
    """Text of the page."""
    sections = "\n".join(
        _section(name, field) for name, field in Recipe.model_fields.items() if _model_in(field.annotation)
    )
    loose = [(name, field) for name, field in Recipe.model_fields.items() if not _model_in(field.annotation)]
    return f"{HEAD}\n## The whole run\n\n{_table(loose)}\n{sections}"


def _section(name: str, field: FieldInfo) -> str:
    model = _model_in(field.annotation)
    assert model is not None
    text = (model.__doc__ or "").strip().splitlines()[0]
    default = " Left out by default." if field.default is None else ""
    optional = f" {field.description[0].upper()}{field.description[1:]}." if field.description else ""
    return f"## {name}\n\n{text}{optional}{default}\n\n{_table(list(_leaves(model, name + '.')))}"


def _leaves(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every setting that is a value; those of nested configs follow their own name."""
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is None or field.default is None:  # a section that is left out by default is a setting too
            yield prefix + name, field
        if inner is not None:
            yield from _leaves(inner, f"{prefix}{name}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The config class in an annotation (`X` or `X | None`), if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
    return None


def _table(fields: list[tuple[str, FieldInfo]]) -> str:
    lines = ["| setting | default | type | meaning |", "|---|---|---|---|"]
    for name, field in fields:
        meaning = (field.description or "").replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{name}` | {_default(field)} | {_type(field.annotation)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if value is None or value == "" or value == () or value == {}:
        return ""
    text = json.dumps(value, default=str)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:55]} …`"


def _type(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if origin in (tuple, list):
        return "list of " + _type(parts[0])
    if origin is dict:
        return "mapping"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(annotation, str(annotation))


if __name__ == "__main__":
    if "--stdout" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        Path(__file__).with_name("settings.md").write_text(page())
