"""Write the tables of docs/scores.md and docs/model_scores.md from the scorers' records: `uv run python docs/write_scores.py`.

A table stands between `<!-- table: NAME, written by docs/write_scores.py -->` and `<!-- end of table -->`; the text
around it is written by hand. With `--check` nothing is written, and pages that are not current are an error.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyramid_model.metrics.facts import NAMED_BY_RECIPE, SCORER_FACTS, ScorerFacts

PAGES = ("scores.md", "model_scores.md")
TABLE = re.compile(
    r"(<!-- table: (\w+), written by docs/write_scores\.py -->\n).*?(\n<!-- end of table -->)", re.DOTALL
)


def current(page: str) -> str:
    """A page with its tables as the records say."""
    return TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], page)


def without_model() -> str:
    """Scorers that need no model."""
    names = ("scorer", "value", "range; how to read it", "better", "sample videos: least, median, most", "in `details`")
    rows = [
        (_code(one.name), _value(one), _range(one), one.better, _sample(one), _details(one))
        for one in SCORER_FACTS.values()
        if not one.weights
    ]
    return _table(names, rows)


def costs() -> str:
    """What scorers without a model read, and what they cost."""
    rows = [(_code(one.name), one.reads, one.cost, one.source) for one in SCORER_FACTS.values() if not one.weights]
    return _table(("scorer", "reads", "CPU, ms a frame", "source"), rows)


def with_model() -> str:
    """Scorers that need a model."""
    names = ("score", "what it says", "range; how to read it", "better", "value; in `details`", "needs", "model")
    own = {setting: f"as named in `{setting}`" for setting in NAMED_BY_RECIPE}
    rows = [
        (
            own.get(one.name, _code(one.name)),
            _value(one),
            _range(one),
            one.better,
            _of_frames(one),
            _needs(one),
            one.weights,
        )
        for one in [*SCORER_FACTS.values(), *NAMED_BY_RECIPE.values()]
        if one.weights
    ]
    return _table(names, rows)


TABLES = {"without_model": without_model, "costs": costs, "with_model": with_model}


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *rows])


def _code(name: str) -> str:
    return f"`{name}`"


def _value(one: ScorerFacts) -> str:
    return f"{one.measures}, {one.unit}" if one.unit else one.measures


def _range(one: ScorerFacts) -> str:
    return "; ".join(filter(None, (one.range_text, one.reading)))


def _sample(one: ScorerFacts) -> str:
    return ", ".join(f"{value:g}" for value in one.sample) if one.sample else ""


def _details(one: ScorerFacts) -> str:
    return "; ".join(f"`{name}`: {meaning}" for name, meaning in one.details.items())


def _of_frames(one: ScorerFacts) -> str:
    chosen = f"{one.of_frames} of the frames" if one.of_frames else ""
    others = ", ".join(f"`{name}`" for name in one.details)
    return "; ".join(filter(None, (chosen, others)))


def _needs(one: ScorerFacts) -> str:
    needs = [one.reads, *(["text"] if one.needs_text else []), *(["a GPU is of use"] if one.can_use_gpu else [])]
    return ", ".join(needs) + (f"; CPU {one.cost} ms a frame" if one.cost else "")


if __name__ == "__main__":
    paths = [Path(__file__).with_name(name) for name in PAGES]
    if "--check" in sys.argv[1:]:
        sys.exit(" ".join(path.name for path in paths if current(path.read_text()) != path.read_text()) or 0)
    for path in paths:
        path.write_text(current(path.read_text()))
