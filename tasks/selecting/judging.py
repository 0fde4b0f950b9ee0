"""The verdicts of one selection: every rule over all clips at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypedDict

import numpy as np

from pyramid_model.train.buckets import fitting_bucket, parse_bucket
from tasks.selecting.quotas import over_quota
from tasks.selecting.select_config import Bounds, Limits, SelectConfig
from tasks.selecting.splits import CONFLICT
from tasks.tables.delta import content_id
from tasks.tables.rows import ClipRow, SelectionColumns
from tasks.tables.schemas import CLIP_FIGURES

VERSION = "1"
CLIP_COLUMNS = (
    *("clip_id", "video_id", "start_s", "end_s", "num_frames", "fps_num", "fps_den", "height", "width", "start_frame"),
)


class Verdict(TypedDict):
    """What a selection says of a clip."""

    keep: bool
    drop_reasons: list[str]
    bucket: str
    split: str


@dataclass(frozen=True)
class Material:
    """What is known of the clips before any rule; everything in the order of the clips."""

    clips: Sequence[ClipRow]  # CLIP_COLUMNS of `clips`
    scores: Mapping[str, np.ndarray]  # by scorer or figure, float64, NaN where there is none
    groups: Mapping[str, Sequence[Sequence[int]]]  # by method: positions of clips, the one to keep first
    splits: Sequence[str]
    sources: Sequence[str]  # of the clips' videos


@dataclass(frozen=True)
class Judged:
    """The verdicts of one selection."""

    name: str  # of the nested set; empty without sets
    config: SelectConfig
    selection: str  # hash of the config
    limits: dict[str, Bounds]  # by scorer, percentiles as the numbers they came to
    rows: list[SelectionColumns]

    @property
    def kept(self) -> np.ndarray:
        """Whether each clip is kept."""
        return np.array([row["keep"] for row in self.rows], bool)


def judge(material: Material, config: SelectConfig, selection: str, outer: Judged | None = None) -> Judged:
    """Verdicts on clips by the rules of the last set of a config.

    Args:
        material: the clips and what is known of them.
        config: the rules.
        selection: its hash, part of the ids.
        outer: verdicts of the set around this one.
    """
    rules, clips = config.rules(), material.clips
    limits = {scorer: _resolved(bounds, material.scores[scorer]) for scorer, bounds in rules.thresholds.items()}
    broken = [] if outer is None else [(f"not_in_{outer.name}", ~outer.kept)]
    for scorer, bounds in limits.items():
        broken += _outside(scorer, material.scores[scorer], bounds)
    broken.append(("too_few_frames", np.array([clip["num_frames"] < rules.min_frames for clip in clips])))
    buckets, misfits = _fit(clips, rules.buckets, config.max_upscale)
    broken += misfits
    broken.append(("straddles_splits", np.array([split == "" for split in material.splits])))
    broken.append((CONFLICT, np.array([split == CONFLICT for split in material.splits])))
    kept = ~np.any([dropped for _, dropped in broken], axis=0)
    for method in config.drop_duplicates:
        repeats = repeated(material.groups.get(method, ()), kept)
        broken.append((f"duplicate_{method}", repeats))
        kept &= ~repeats
    training = kept & np.array([split == "train" for split in material.splits])
    clip_ids, videos = ([clip[name] for clip in clips] for name in ("clip_id", "video_id"))
    quotas = {"weights": config.sources, "max_per_video": config.max_per_video, "max_clips": rules.max_clips}
    dropped = over_quota(np.flatnonzero(training), clip_ids, videos, material.sources, **quotas)
    reasons: list[list[str]] = [[] for _ in clips]
    for reason, places in [*((reason, np.flatnonzero(mask)) for reason, mask in broken), *dropped]:
        for place in places.tolist():
            reasons[place].append(reason)
    rows = _rows(material, config, selection, reasons, buckets)
    return Judged(rules.name, config, selection, limits, rows)


def clip_figures(clips: Sequence[ClipRow]) -> dict[str, np.ndarray]:
    """CLIP_FIGURES of clips, as if they were scores."""
    column = {
        name: np.array([clip[name] for clip in clips], np.float64)
        for name in ("start_s", "end_s", "fps_num", "fps_den", "height", "width")
    }
    figures = (
        column["end_s"] - column["start_s"],
        column["fps_num"] / column["fps_den"],
        column["height"],
        column["width"],
        column["width"] / column["height"],
    )
    return dict(zip(CLIP_FIGURES, figures, strict=True))


def _resolved(limits: Limits, values: np.ndarray) -> Bounds:
    """Bounds as numbers: percentiles looked up, the stricter of two for one side."""
    known = values[~np.isnan(values)]

    def percentile(percent: float | None) -> list[float]:
        return [] if percent is None or not len(known) else [float(np.percentile(known, percent))]

    low = [*percentile(limits.min_percentile), *([] if limits.min is None else [limits.min])]
    high = [*percentile(limits.max_percentile), *([] if limits.max is None else [limits.max])]
    return Bounds(min=max(low, default=None), max=min(high, default=None))


def _outside(scorer: str, values: np.ndarray, bounds: Bounds) -> list[tuple[str, np.ndarray]]:
    """Clips without the score, and those beyond either bound."""
    low, high = bounds.min, bounds.max
    never = np.zeros(len(values), bool)
    return [
        (f"{scorer}_missing", np.isnan(values)),
        (f"{scorer}_low", never if low is None else values < low),
        (f"{scorer}_high", never if high is None else values > high),
    ]


def _fit(
    clips: Sequence[ClipRow], texts: Sequence[str], max_upscale: float
) -> tuple[list[str], list[tuple[str, np.ndarray]]]:
    """The bucket of each clip, "" if it fits none, and which clips are too short or too small for all."""
    buckets = [parse_bucket(text) for text in texts]
    known: dict[tuple[int, ...], tuple[str, str]] = {}  # many clips are of one size and length
    found = []
    for clip in clips:
        shape = tuple(clip[name] for name in ("height", "width", "num_frames", "fps_num", "fps_den"))
        if shape not in known:
            bucket, why = fitting_bucket(*shape[:3], Fraction(*shape[3:]), buckets, max_upscale)
            known[shape] = str(bucket or ""), why
        found.append(known[shape])
    misfits = [(reason, np.array([why == reason for _, why in found])) for reason in ("too_short", "too_small")]
    return [bucket for bucket, _ in found], misfits


def repeated(groups: Sequence[Sequence[int]], kept: np.ndarray) -> np.ndarray:
    """Clips that repeat one which stays: the best of a group that other rules keep, or its first if they keep none.

    Args:
        groups: positions of clips, the best first.
        kept: whether all rules so far keep each clip.
    """
    repeats = np.zeros(len(kept), bool)
    for group in groups:
        stays = next((place for place in group if kept[place]), group[0])
        repeats[[place for place in group if place != stays]] = True
    return repeats


def _rows(
    material: Material, config: SelectConfig, selection: str, reasons: Sequence[list[str]], buckets: Sequence[str]
) -> list[SelectionColumns]:
    """Rows of `selections`; the id of a verdict also names the scores that were looked at."""
    asked = sorted({*config.thresholds, *(scorer for one in config.sets for scorer in one.thresholds)})
    nothing = np.full(len(material.clips), np.nan)
    values = [[None if x != x else x for x in material.scores.get(scorer, nothing).tolist()] for scorer in asked]
    name = config.rules().name
    rows: list[SelectionColumns] = []
    for place, clip in enumerate(material.clips):
        split = material.splits[place]
        verdict: Verdict = {
            "keep": not reasons[place],
            "drop_reasons": reasons[place],
            "bucket": buckets[place],
            "split": "" if split == CONFLICT else split,
        }
        used = {scorer: column[place] for scorer, column in zip(asked, values, strict=True)}
        selection_id = content_id(clip["clip_id"], selection, VERSION, used, verdict)
        rows.append({"selection_id": selection_id, "clip_id": clip["clip_id"], "subset": name, **verdict})
    return rows
