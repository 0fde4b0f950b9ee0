"""Groups related options in a dataclass, so that a command takes a few objects instead of twenty values."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command for typer in which each field of a dataclass parameter becomes an option.

    A field is annotated like a parameter, `name: Annotated[str, typer.Option("--name", …)] = ""`. Options appear
    in `--help` in the order of parameters and fields; names must be unique among all of them.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}
    flat: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if group := groups.get(parameter.name):
            options = get_type_hints(group, include_extras=True)
            flat += [
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=options[field.name]
                )
                for field in fields(group)
            ]
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))

    @functools.wraps(command)
    def flattened(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    flattened.__dict__["__signature__"] = inspect.Signature(flat)
    flattened.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return flattened
