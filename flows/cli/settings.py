"""Settings of one command: its typed options, `--set`, and its own defaults, in one precedence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.recipe import Recipe

_ABSENT = object()


def common_options(source: str = "", ray: str | None = None, retry_failed: bool = False) -> dict[str, Any]:
    """Settings by dotted name of the options that most commands have; an option that is not used gives none."""
    options = {"ingest.source": source, "ray.address": ray, "retry_failed": retry_failed}
    return {name: value for name, value in options.items() if value}


def command_recipe(recipe: str, pairs: Sequence[str] | None, options: Mapping[str, Any]) -> "Recipe":
    """The recipe with the settings of a command.

    Args:
        recipe: name or path.
        pairs: `section.key=value` of each --set.
        options: settings by dotted name of the typed options.

    Raises:
        RecipeError: the recipe does not exist, or a setting is wrong.
        ValueError: an option and --set differ.
    """
    from flows.recipe import load_recipe, parse_settings

    return load_recipe(recipe, combined(parse_settings(pairs or ()), options))


def combined(
    settings: Mapping[str, Any], options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Overrides of a recipe by dotted name, in the order in which they are applied.

    Args:
        settings: of --set.
        options: of the typed options.
        defaults: of the command itself; options and --set replace them.

    Raises:
        ValueError: an option and --set give one setting different values.
    """
    for name, value in options.items():
        other = _value_in(settings, name)
        if other is not _ABSENT and other != value:
            raise ValueError(
                f"{name} is given twice: as {str(value)[:80]!r} by an option and as {str(other)[:80]!r} by --set. "
                "Give it once"
            )
    return {**(defaults or {}), **settings, **options}


def _value_in(settings: Mapping[str, Any], name: str) -> Any:
    """Value of a setting among those of --set, which may set a whole section; `_ABSENT` without one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        value = settings.get(".".join(parts[:length]), _ABSENT)
        for part in parts[length:]:
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT:
            return value
    return _ABSENT
