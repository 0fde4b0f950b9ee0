"""YAML from elsewhere: size, depth, aliases and numbers are checked before Python values are built."""

from collections import Counter
from typing import Any

import yaml

from tasks.tables.plain_text import shown

MAX_DEPTH = 50
MAX_NODES = 10**6  # values, with those that aliases repeat
MAX_NUMBER = 100  # characters of a number or a date
MAX_BYTES = 16 * 2**20

_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the loader in C is ten times as fast


class _Loader(_Safe):
    """Safe loader that refuses long numbers, whose conversion takes time quadratic in their length, and double keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        if double := next((key for key, count in keys.items() if count > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {shown(double)} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _bounded(loader: Any, node: Any) -> Any:
    if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_NUMBER:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number or date of {len(node.value)} characters", node.start_mark
        )
    return _Safe.yaml_constructors[node.tag](loader, node)


for _name in ("int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _bounded)


def parse_yaml(text: bytes | str, name: str) -> Any:
    """The value of a YAML text.

    text: bytes are UTF-8 or UTF-16. name: of the file, for messages.

    Raises:
        ValueError: it is not YAML, or is larger, deeper or longer by its aliases than any file of ours.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{name} has {len(text)} bytes: at most {MAX_BYTES} are read as YAML")
    try:
        _check_events(text, name)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError, OverflowError) as err:
        if isinstance(err, ValueError) and str(err).startswith(name):
            raise
        raise ValueError(f"{name} is not YAML: {err}") from err


def _check_events(text: bytes | str, name: str) -> None:
    """Check depth and number of values without making them.

    Raises:
        ValueError: there are too many.
    """
    sizes: dict[str, int] = {}  # values inside each anchor that is complete
    open_nodes: list[tuple[str | None, int]] = []  # (anchor, values before it) of the collections that are open
    total = 0
    for event in yaml.parse(text, _Safe):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"{name} is not YAML: the alias *{str(event.anchor)[:40]} has no value before it")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep: no file of ours is")
        if total > MAX_NODES:
            raise ValueError(f"{name} has more than {MAX_NODES} values, with those that its aliases repeat")
