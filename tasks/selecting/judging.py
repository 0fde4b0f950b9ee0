"""The verdicts of one selection: every rule over all clips at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypedDict

import numpy as np

from pyramid_model.train.buckets import fitting_bucket, parse_bucket
from tasks.selecting.quotas import over_quota
from tasks.selecting.select_config import Bounds, Limits, SelectConfig
from tasks.tables.content_ids import content_id
from tasks.tables.drop_reasons import (
    DUPLICATE,
    HIGH,
    LOW,
    MISSING,
    OUTER_SET,
    PINS_CONFLICT,
    STRADDLES_SPLITS,
    TOO_FEW_FRAMES,
    TOO_SHORT,
    TOO_SMALL,
)
from tasks.tables.rows import ClipRow, SelectionColumns

VERSION = "1"
CLIP_COLUMNS = (
    *("clip_id", "video_id", "start_s", "end_s", "num_frames", "fps_num", "fps_den", "height", "width", "start_frame"),
)


class Verdict(TypedDict):
    """The verdict of a selection on a clip."""

    keep: bool
    drop_reasons: list[str]
    bucket: str
    split: str


@dataclass(frozen=True)
class Material:
    """The clips and the data that the rules read; everything in the order of the clips."""

    clips: Sequence[ClipRow]  # CLIP_COLUMNS of `clips`
    scores: Mapping[str, np.ndarray]  # by scorer or figure, float64; NaN: the clip has none
    groups: Mapping[str, Sequence[Sequence[int]]]  # by method: positions of clips, the one to keep first
    splits: Sequence[str]
    sources: Sequence[str]  # of the clips' videos


@dataclass(frozen=True)
class Judged:
    """The verdicts of one selection."""

    name: str  # of the nested set; empty without sets
    config: SelectConfig
    selection: str  # hash of the config
    limits: dict[str, Bounds]  # by scorer; percentiles are resolved to values
    rows: list[SelectionColumns]

    @property
    def kept(self) -> np.ndarray:
        """Whether each clip is kept."""
        return np.array([row["keep"] for row in self.rows], bool)


def judge(material: Material, config: SelectConfig, selection: str, outer: Judged | None = None) -> Judged:
    """Verdicts on clips by the rules of the last set of a config.

    Args:
        material: the clips and the data that the rules read.
        config: the rules.
        selection: its hash, part of the ids.
        outer: verdicts of the next wider set; None: there is none.
    """
    rules, clips = config.rules(), material.clips
    limits = {scorer: _resolved(bounds, material.scores[scorer]) for scorer, bounds in rules.thresholds.items()}
    broken = [] if outer is None else [(OUTER_SET + outer.name, ~outer.kept)]
    for scorer, bounds in limits.items():
        broken += _outside(scorer, material.scores[scorer], bounds)
    broken.append((TOO_FEW_FRAMES, np.array([clip["num_frames"] < rules.min_frames for clip in clips])))
    buckets, misfits = _fit(clips, rules.buckets, config.max_upscale)
    broken += misfits
    broken.append((STRADDLES_SPLITS, np.array([split == "" for split in material.splits])))
    broken.append((PINS_CONFLICT, np.array([split == PINS_CONFLICT for split in material.splits])))
    is_kept = ~np.any([dropped for _, dropped in broken], axis=0)
    for method in config.drop_duplicates:
        repeats = repeated(material.groups.get(method, ()), is_kept)
        broken.append((DUPLICATE + method, repeats))
        is_kept &= ~repeats
    training = is_kept & np.array([split == "train" for split in material.splits])
    clip_ids, videos = ([clip[name] for clip in clips] for name in ("clip_id", "video_id"))
    quotas = {"weights": config.sources, "max_per_video": config.max_per_video, "max_clips": rules.max_clips}
    dropped = over_quota(np.flatnonzero(training), clip_ids, videos, material.sources, **quotas)
    reasons: list[list[str]] = [[] for _ in clips]
    for reason, places in [*((reason, np.flatnonzero(mask)) for reason, mask in broken), *dropped]:
        for place in places.tolist():
            reasons[place].append(reason)
    rows = _rows(material, config, selection, reasons, buckets)
    return Judged(rules.name, config, selection, limits, rows)


def _resolved(limits: Limits, values: np.ndarray) -> Bounds:
    """Limits as values: percentiles are resolved over these values. Of two bounds on one side the stricter holds."""
    numbers = values[~np.isnan(values)]

    def percentile(percent: float | None) -> list[float]:
        return [] if percent is None or not len(numbers) else [float(np.percentile(numbers, percent))]

    low = [*percentile(limits.min_percentile), *([] if limits.min is None else [limits.min])]
    high = [*percentile(limits.max_percentile), *([] if limits.max is None else [limits.max])]
    return Bounds(min=max(low, default=None), max=min(high, default=None))


def _outside(scorer: str, values: np.ndarray, bounds: Bounds) -> list[tuple[str, np.ndarray]]:
    """(reason, mask of clips): clips without the score, clips below the bounds, clips above them."""
    low, high = bounds.min, bounds.max
    no_clip = np.zeros(len(values), bool)
    return [
        (scorer + MISSING, np.isnan(values)),
        (scorer + LOW, no_clip if low is None else values < low),
        (scorer + HIGH, no_clip if high is None else values > high),
    ]


def _fit(
    clips: Sequence[ClipRow], texts: Sequence[str], max_upscale: float
) -> tuple[list[str], list[tuple[str, np.ndarray]]]:
    """The bucket of each clip ("" if it fits none), and (reason, mask) of the clips too short or too small for all."""
    buckets = [parse_bucket(text) for text in texts]
    by_shape: dict[tuple[int, ...], tuple[str, str]] = {}  # computed once for clips of equal size and length
    fits = []
    for clip in clips:
        size, rate = (clip["height"], clip["width"], clip["num_frames"]), (clip["fps_num"], clip["fps_den"])
        shape = size + rate
        if shape not in by_shape:
            bucket, reason = fitting_bucket(*size, Fraction(*rate), buckets, max_upscale)
            by_shape[shape] = str(bucket or ""), reason
        fits.append(by_shape[shape])
    misfits = [(name, np.array([reason == name for _, reason in fits])) for name in (TOO_SHORT, TOO_SMALL)]
    return [bucket for bucket, _ in fits], misfits


def repeated(groups: Sequence[Sequence[int]], is_kept: np.ndarray) -> np.ndarray:
    """Mask of the clips to drop as duplicates: all clips of a group except one.

    The clip that stays is the first of its group that all earlier rules keep; the first clip if they keep none.

    Args:
        groups: positions of the clips of each group, the best first.
        is_kept: whether all earlier rules keep each clip.
    """
    repeats = np.zeros(len(is_kept), bool)
    for group in groups:
        keeper = next((place for place in group if is_kept[place]), group[0])
        repeats[[place for place in group if place != keeper]] = True
    return repeats


def _rows(
    material: Material, config: SelectConfig, selection: str, reasons: Sequence[list[str]], buckets: Sequence[str]
) -> list[SelectionColumns]:
    """Rows of `selections`; the id of a verdict includes the scores that have limits."""
    limited = sorted({*config.thresholds, *(scorer for nested in config.sets for scorer in nested.thresholds)})
    no_scores = np.full(len(material.clips), np.nan)
    values = [[None if x != x else x for x in material.scores.get(scorer, no_scores).tolist()] for scorer in limited]
    name = config.rules().name
    rows: list[SelectionColumns] = []
    for place, clip in enumerate(material.clips):
        split = material.splits[place]
        verdict: Verdict = {
            "keep": not reasons[place],
            "drop_reasons": reasons[place],
            "bucket": buckets[place],
            "split": "" if split == PINS_CONFLICT else split,
        }
        used = {scorer: column[place] for scorer, column in zip(limited, values, strict=True)}
        selection_id = content_id(clip["clip_id"], selection, VERSION, used, verdict)
        rows.append({"selection_id": selection_id, "clip_id": clip["clip_id"], "subset": name, **verdict})
    return rows
