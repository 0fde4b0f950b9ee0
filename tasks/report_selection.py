"""What the report says about scores and the rules that judge them."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import: pyright sees none of them.

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from tasks.report_curation import Curation
from tasks.report_data import Records, loads
from tasks.report_figures import Threshold, histogram_figure
from tasks.table_stats import compact, counts_within, finite_values, histogram
from tasks.tables import as_dataset, open_table

SIDES = {"min": "above", "max": "below"}
REASONS = {"above": "low", "below": "high"}  # what a clip beyond a limit is called
MAX_SAMPLES = 6  # clips shown a rule and side of its limit


@dataclass(frozen=True)
class Limit:
    """One bound of a score, and how many clips it drops."""

    words: str
    reason: str
    num_dropped: int


@dataclass(frozen=True)
class ScoreFigure:
    """Histogram of one scorer."""

    name: str
    svg: str
    mean: str
    count: int
    num_without: int  # clips without a value
    limits: list[Limit] = field(default_factory=list)


def score_figures(curation: Curation, thresholds: dict[str, list[Threshold]]) -> list[ScoreFigure]:
    """A histogram a scorer with numbers, with the limits of the selection and what each of them drops.

    Figures of the clip itself are drawn where they have limits; its length always.
    """
    dropped_by = {rule.reason: rule.alone for rule in curation.rules}
    kept = curation.clips.filter(pc.fill_null(curation.clips["keep"], True))
    figures = []
    measured = ["duration_s", *(name for name in thresholds if name in curation.clips.column_names)]
    for name in dict.fromkeys([*measured, *curation.scorers]):
        found = histogram(name, finite_values(curation.clips[name]))
        if found is None:
            continue
        bounds = thresholds.get(name, [])
        limits = [Limit(one.words, f"{name}_{REASONS[one.keeps]}", 0) for one in bounds]
        if f"{name}_missing" in dropped_by:
            limits.append(Limit("no value", f"{name}_missing", 0))
        limits = [replace(limit, num_dropped=dropped_by.get(limit.reason, 0)) for limit in limits]
        of_kept = counts_within(finite_values(kept[name]), found.edges)
        svg = histogram_figure(found, of_kept, bounds)
        count = sum(found.counts)
        figures.append(ScoreFigure(name, svg, compact(found.mean), count, curation.clips.num_rows - count, limits))
    return figures


def select_outputs(curation: Curation, records: Records) -> dict[str, str]:
    """What the step that made the newest selection said of it; empty when its record is gone."""
    found = [result.outputs for _, result in records if result.outputs.get("selection") == curation.selection]
    return found[-1] if found else {}


def selection_thresholds(outputs: Mapping[str, str]) -> dict[str, list[Threshold]]:
    """Limits by scorer, from the outputs of the step."""
    return {
        scorer: [Threshold(limits[side], keeps) for side, keeps in SIDES.items() if limits.get(side) is not None]
        for scorer, limits in loads(outputs.get("thresholds")).items()
    }


@dataclass(frozen=True)
class LabelFigure:
    """How often a scorer gave each of its labels."""

    scorer: str
    counts: list[tuple[str, int, int]]  # label, clips, of these kept or not judged; the most frequent first


def read_labels(root: str, curation: Curation) -> dict[str, dict[str, str]]:
    """Scorer -> clip id -> label, for scorers whose details name a label, such as the motion of the camera."""
    delta = open_table(root, "scores")
    if delta is None:
        return {}
    # Looked for in the files themselves: details of other scorers are never held together.
    labelled = (pc.field("status") == "ok") & pc.match_substring(pc.field("details"), '"label"')
    columns = ["clip_id", "scorer", "details", "created_at"]
    rows = as_dataset(delta, "scores").to_table(columns=columns, filter=labelled).sort_by("created_at")
    rows = rows.filter(pc.is_in(rows["clip_id"], value_set=curation.clips["clip_id"].combine_chunks()))
    found: dict[str, dict[str, str]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["scorer"], {})[row["clip_id"]] = str(json.loads(row["details"])["label"])
    return found


def label_figures(curation: Curation, labels: dict[str, dict[str, str]]) -> list[LabelFigure]:
    """Counts of the labels of each scorer that gives some. labels: scorer -> clip id -> label."""
    keep = dict(zip(curation.clips["clip_id"].to_pylist(), curation.keep, strict=True))
    figures = []
    for scorer, found in labels.items():
        every = Counter(found.values())
        kept = Counter(label for clip_id, label in found.items() if keep.get(clip_id) is not False)
        figures.append(LabelFigure(scorer, [(name, count, kept[name]) for name, count in every.most_common()]))
    return figures


@dataclass(frozen=True)
class Sample:
    """A clip as an example of what a rule does."""

    clip_id: str
    words: str  # its value, "" for a rule without one


@dataclass(frozen=True)
class RuleExamples:
    """Clips on both sides of a rule, nearest to its limit first where it has one."""

    reason: str
    limit: str  # "≥ 1.25", "" for a rule that is no limit of a score
    dropped: list[Sample]
    kept: list[Sample]


def rule_examples(curation: Curation, thresholds: dict[str, list[Threshold]]) -> list[RuleExamples]:
    """Examples for every rule that dropped a clip. Kept ones have passed all rules."""
    limits = {
        f"{scorer}_{REASONS[one.keeps]}": (scorer, one)
        for scorer, found in thresholds.items()
        for one in found
        if scorer in curation.clips.column_names
    }
    examples = []
    for rule in curation.rules:
        missed = pa.array([rule.reason in reasons for reasons in curation.drop_reasons])
        dropped = curation.clips.filter(missed)
        scorer, limit = limits.get(rule.reason, ("", None))
        if limit is None:
            examples.append(RuleExamples(rule.reason, "", _samples(dropped.slice(0, MAX_SAMPLES)), []))
            continue
        away, near = ("descending", "ascending") if limit.keeps == "above" else ("ascending", "descending")
        examples.append(
            RuleExamples(
                rule.reason,
                limit.words,
                _samples(_first(dropped, scorer, away), scorer),
                _samples(_first(curation.kept(), scorer, near), scorer),
            )
        )
    return examples


def _first(clips: pa.Table, scorer: str, order: str) -> pa.Table:
    return clips.filter(pc.is_valid(clips[scorer])).sort_by([(scorer, order)]).slice(0, MAX_SAMPLES)


def _samples(clips: pa.Table, scorer: str = "") -> list[Sample]:
    values = clips[scorer].to_pylist() if scorer else [None] * clips.num_rows
    words = ["" if value is None else compact(value) for value in values]
    return [Sample(*pair) for pair in zip(clips["clip_id"].to_pylist(), words, strict=True)]
