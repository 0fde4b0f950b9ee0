"""Quotas of a selection: most clips of one video, share of each source, most clips in all.

Clips are drawn in the order of a hash of their id. The order of two clips never depends on other clips, so a new or
removed clip changes the verdict of few others.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.tables.content_ids import content_id
from tasks.tables.drop_reasons import OVER_MAX_CLIPS, OVER_MAX_PER_VIDEO, OVER_SOURCE_SHARE, SOURCE_LEFT_OUT

Dropped = list[tuple[str, np.ndarray]]


def over_quota(
    candidates: np.ndarray,
    clip_ids: Sequence[str],
    videos: Sequence[str],
    sources: Sequence[str],
    *,
    max_per_video: int | None,
    weights: Mapping[str, float],
    max_clips: int | None,
) -> Dropped:
    """Clips that quotas drop, as (reason, positions).

    Args:
        candidates: positions of the clips that all other rules keep.
        clip_ids: of all clips; the same for `videos` and `sources`.
        videos: video of each clip.
        sources: source of each clip's video.
        max_per_video: most clips of one video.
        weights: share of each source; the sum may be any number; clips of other sources are dropped. Empty: no shares.
        max_clips: most clips in all; the shares apply to this number of clips.
    """
    dropped: Dropped = []
    if not len(candidates) or not (max_per_video or weights or max_clips):
        return dropped
    draw = {place: content_id("draw", clip_ids[place]) for place in candidates.tolist()}
    remaining = sorted(draw, key=lambda place: draw[place])

    def drop(reason: str, others: list[int]) -> None:
        nonlocal remaining
        dropped.append((reason, np.array(sorted(set(remaining) - set(others)), np.int64)))
        remaining = others

    if max_per_video:
        drop(OVER_MAX_PER_VIDEO, _first_of_each(remaining, videos, dict.fromkeys(videos, max_per_video)))
    if weights:
        drop(SOURCE_LEFT_OUT, [place for place in remaining if sources[place] in weights])
        shares = _counts_by_weight(remaining, sources, weights, max_clips)
        drop(OVER_SOURCE_SHARE, _first_of_each(remaining, sources, shares))
    if max_clips:
        drop(OVER_MAX_CLIPS, remaining[:max_clips])
    return [(reason, places) for reason, places in dropped if len(places)]


def _first_of_each(places: Sequence[int], names: Sequence[str], most: Mapping[str, int]) -> list[int]:
    """The places in their order; of each name only the first `most[name]`."""
    counts: dict[str, int] = {}
    first = []
    for place in places:
        name = names[place]
        if counts.get(name, 0) < most[name]:
            counts[name] = counts.get(name, 0) + 1
            first.append(place)
    return first


def _counts_by_weight(
    places: Sequence[int], sources: Sequence[str], weights: Mapping[str, float], max_clips: int | None
) -> dict[str, int]:
    """Clips to take of each source: in the ratio of the weights, as many as the scarcest source allows.

    A source without clips is ignored; of each other source at least one clip is taken.
    """
    available: dict[str, int] = {}
    for place in places:
        available[sources[place]] = available.get(sources[place], 0) + 1
    total = sum(weights[name] for name in available)
    scale = min((count / weights[name] for name, count in available.items()), default=0.0)
    if max_clips:
        scale = min(scale, max_clips / total)
    return {name: min(count, max(1, int(scale * weights[name] + 1e-9))) for name, count in available.items()}
