"""Write the tables of docs/scores.md and docs/model_scores.md from the scorers' records: `uv run python docs/write_scores.py`.

A table stands between `<!-- table: NAME, written by docs/write_scores.py -->` and `<!-- end of table -->`; the text
around it is written by hand. With `--check` nothing is written, and outdated pages are an error.
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
    """The page with its tables written again from the records."""
    return TABLE.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], page)


def without_model() -> str:
    """Scorers that need no model."""
    names = (
        "scorer",
        "value",
        "range; how to read it",
        "better",
        "sample videos: smallest, median, largest",
        "in `details`",
    )
    rows = [
        (_code(scorer.name), _value(scorer), _range(scorer), scorer.better, _sample(scorer), _details(scorer))
        for scorer in SCORER_FACTS.values()
        if not scorer.weights
    ]
    return _table(names, rows)


def costs() -> str:
    """What scorers without a model read, and what they cost."""
    rows = [
        (_code(scorer.name), scorer.reads, scorer.cost, scorer.source)
        for scorer in SCORER_FACTS.values()
        if not scorer.weights
    ]
    return _table(("scorer", "reads", "CPU, ms for each frame", "source"), rows)


def with_model() -> str:
    """Scorers that need a model."""
    names = ("score", "value", "range; how to read it", "better", "of the frames; in `details`", "needs", "model")
    names_by_setting = {setting: f"as named in `{setting}`" for setting in NAMED_BY_RECIPE}
    rows = [
        (
            names_by_setting.get(scorer.name, _code(scorer.name)),
            _value(scorer),
            _range(scorer),
            scorer.better,
            _of_frames(scorer),
            _needs(scorer),
            scorer.weights,
        )
        for scorer in [*SCORER_FACTS.values(), *NAMED_BY_RECIPE.values()]
        if scorer.weights
    ]
    return _table(names, rows)


TABLES = {"without_model": without_model, "costs": costs, "with_model": with_model}


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *rows])


def _code(name: str) -> str:
    return f"`{name}`"


def _value(scorer: ScorerFacts) -> str:
    return f"{scorer.measures}, {scorer.unit}" if scorer.unit else scorer.measures


def _range(scorer: ScorerFacts) -> str:
    return "; ".join(filter(None, (scorer.range_text, scorer.reading)))


def _sample(scorer: ScorerFacts) -> str:
    return ", ".join(f"{value:g}" for value in scorer.sample) if scorer.sample else ""


def _details(scorer: ScorerFacts) -> str:
    return "; ".join(f"`{name}`: {meaning}" for name, meaning in scorer.details.items())


def _of_frames(scorer: ScorerFacts) -> str:
    chosen = f"{scorer.of_frames} of the frames" if scorer.of_frames else ""
    others = ", ".join(f"`{name}`" for name in scorer.details)
    return "; ".join(filter(None, (chosen, others)))


def _needs(scorer: ScorerFacts) -> str:
    needs = [
        scorer.reads,
        *(["text"] if scorer.needs_text else []),
        *(["can use a GPU"] if scorer.can_use_gpu else []),
    ]
    return ", ".join(needs) + (f"; CPU {scorer.cost} ms for each frame" if scorer.cost else "")


if __name__ == "__main__":
    paths = [Path(__file__).with_name(name) for name in PAGES]
    if "--check" in sys.argv[1:]:
        sys.exit(" ".join(path.name for path in paths if current(path.read_text()) != path.read_text()) or 0)
    for path in paths:
        path.write_text(current(path.read_text()))
