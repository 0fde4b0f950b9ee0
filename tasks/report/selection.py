"""The sections of the report on scores and on the rules of the selection."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from tasks.inspecting.table_stats import compact, counts_within, finite_values, histogram, score_label
from tasks.report.curation import Curation
from tasks.report.duplicates import Duplicates
from tasks.report.figures import Threshold, histogram_figure
from tasks.report.run import Records
from tasks.selecting.select_config import Bounds, SelectResult
from tasks.tables.drop_reasons import DUPLICATE, HIGH, LOW, MISSING, TOO_FEW_FRAMES, TOO_SHORT

SUFFIXES = {"above": LOW, "below": HIGH}  # suffix of the drop reason of a limit, by the side on which clips pass
MAX_SAMPLES = 6  # clips for each rule and side of its limit
FIGURES = {
    TOO_FEW_FRAMES: "num_frames",
    TOO_SHORT: "duration_s",
}  # values that rules other than limits on scores compare


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
    measures: str  # meaning of the score; "" for scorers that a recipe defines
    svg: str
    mean: str
    count: int
    tallest: int  # clips in the fullest bin
    num_without: int  # clips without a value
    limits: list[Limit] = field(default_factory=list)


def score_figures(curation: Curation, thresholds: dict[str, list[Threshold]]) -> list[ScoreFigure]:
    """A histogram for each scorer with numbers, with the limits of the selection and the clips that each drops.

    Figures of the clip itself are included if they have limits; its length always is.
    """
    dropped_by = {rule.reason: rule.alone for rule in curation.rules}
    kept_clips = curation.clips.filter(pc.fill_null(curation.clips["keep"], True))
    figures = []
    measured = ["duration_s", *(name for name in thresholds if name in curation.clips.column_names)]
    for name in dict.fromkeys([*measured, *curation.scorers]):
        bins = histogram(name, finite_values(curation.clips[name]))
        if bins is None:
            continue
        bounds = thresholds.get(name, [])
        limits = [Limit(bound.words, name + SUFFIXES[bound.keeps], 0) for bound in bounds]
        if name + MISSING in dropped_by:
            limits.append(Limit("no value", name + MISSING, 0))
        limits = [replace(limit, num_dropped=dropped_by.get(limit.reason, 0)) for limit in limits]
        of_kept = counts_within(finite_values(kept_clips[name]), bins.edges)
        svg = histogram_figure(bins, of_kept, bounds)
        count = sum(bins.counts)
        without = curation.clips.num_rows - count
        mean, tallest = compact(bins.mean), max(bins.counts)
        figures.append(ScoreFigure(name, score_label(name), svg, mean, count, tallest, without, limits))
    return figures


def newest_select_result(curation: Curation, records: Records) -> SelectResult | None:
    """Result of the step that made the newest selection; None if its record is missing."""
    results = [result for _, result in records if isinstance(result, SelectResult)]
    return next((result for result in reversed(results) if result.selection == curation.selection), None)


def thresholds_of(result: SelectResult | None) -> dict[str, list[Threshold]]:
    """Limits by scorer, as lines for its histogram."""

    def lines(bounds: Bounds) -> list[Threshold]:
        low = [] if bounds.min is None else [Threshold(bounds.min, "above")]
        return low if bounds.max is None else [*low, Threshold(bounds.max, "below")]

    return {scorer: lines(bounds) for scorer, bounds in (result.thresholds if result else {}).items()}


@dataclass(frozen=True)
class LabelFigure:
    """Counts of the labels that one scorer gave."""

    scorer: str
    counts: list[tuple[str, int, int]]  # label, clips, of these kept or not judged; the most frequent first


def label_figures(curation: Curation, labels: dict[str, dict[str, str]]) -> list[LabelFigure]:
    """Counts of the labels that each scorer gave the current clips. labels: scorer -> clip id -> label."""
    keep = dict(zip(curation.clips["clip_id"].to_pylist(), curation.keep, strict=True))
    figures = []
    for scorer, by_clip in labels.items():
        every = Counter(label for clip_id, label in by_clip.items() if clip_id in keep)
        kept_counts = Counter(label for clip_id, label in by_clip.items() if keep.get(clip_id, False) is not False)
        figures.append(LabelFigure(scorer, [(name, count, kept_counts[name]) for name, count in every.most_common()]))
    return figures


@dataclass(frozen=True)
class Sample:
    """A clip as an example for a rule."""

    clip_id: str
    words: str  # its value, "" for a rule without one


@dataclass(frozen=True)
class RuleExamples:
    """Clips on both sides of a rule, nearest to its limit first where a figure decides."""

    reason: str
    limit: str  # such as "≥ 1.25"; "" for rules other than limits on scores
    order: str  # phrase about the order of the clips
    dropped: list[Sample]
    kept: list[Sample]
    about_kept: str = "kept"


def rule_examples(
    curation: Curation, thresholds: dict[str, list[Threshold]], duplicates: Duplicates
) -> list[RuleExamples]:
    """Examples for every rule that dropped a clip.

    Kept examples pass all rules; beside duplicates they are the clips that are kept instead.
    """
    limits = {
        scorer + SUFFIXES[threshold.keeps]: (scorer, threshold)
        for scorer, of_scorer in thresholds.items()
        for threshold in of_scorer
        if scorer in curation.clips.column_names
    }
    examples = []
    for rule in curation.rules:
        missed = pa.array([rule.reason in reasons for reasons in curation.drop_reasons])
        dropped = curation.clips.filter(missed)
        figure, limit = limits.get(rule.reason, (FIGURES.get(rule.reason, ""), None))
        if figure:
            is_least = limit is None or limit.keeps == "above"
            away, near = ("descending", "ascending") if is_least else ("ascending", "descending")
            words = limit.words if limit else ""
            beyond = _samples(_first(dropped, figure, away), figure)
            within = _samples(_first(curation.kept_clips(), figure, near), figure)
            examples.append(RuleExamples(rule.reason, words, ", nearest to the limit", beyond, within))
            continue
        first = _samples(dropped.slice(0, MAX_SAMPLES))
        if rule.reason.startswith(DUPLICATE):
            instead = _kept_instead(first, rule.reason.removeprefix(DUPLICATE), duplicates)
            examples.append(RuleExamples(rule.reason, "", "", first, instead, "kept instead"))
        else:
            passing = _samples(curation.kept_clips().slice(0, MAX_SAMPLES))
            examples.append(RuleExamples(rule.reason, "", "", first, passing))
    return examples


def _kept_instead(dropped: Sequence[Sample], method: str, duplicates: Duplicates) -> list[Sample]:
    """The kept clips of the groups of the dropped clips, each once."""
    keeper_of = {}
    for group in duplicates.groups:
        if group.method == method:
            keeper = next((member.clip["clip_id"] for member in group.members if member.clip["keep"]), "")
            keeper_of |= {member.clip["clip_id"]: keeper for member in group.members}
    clip_ids = dict.fromkeys(keeper_of.get(sample.clip_id, "") for sample in dropped)
    return [Sample(clip_id, "") for clip_id in clip_ids if clip_id]


def _first(clips: pa.Table, scorer: str, order: str) -> pa.Table:
    return clips.filter(pc.is_valid(clips[scorer])).sort_by([(scorer, order)]).slice(0, MAX_SAMPLES)


def _samples(clips: pa.Table, scorer: str = "") -> list[Sample]:
    values = clips[scorer].to_pylist() if scorer else [None] * clips.num_rows
    words = ["" if value is None else compact(value) for value in values]
    return [Sample(*pair) for pair in zip(clips["clip_id"].to_pylist(), words, strict=True)]
