"""How many clips of one video, one source and in all a selection takes, drawn by a hash of the clip.

A clip's place in the draw depends on nothing but its id, so that clips which come or go change few others.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.tables.delta import content_id

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
    """Clips that quotas leave out, as (reason, positions).

    Args:
        candidates: positions of the clips that all other rules keep.
        clip_ids: of all clips; the same for `videos` and `sources`.
        videos: video of each clip.
        sources: source of each clip's video.
        max_per_video: most clips of one video.
        weights: share of each source, of any sum; clips of other sources go. Empty: sources do not matter.
        max_clips: most clips in all; shares hold below it, too.
    """
    dropped: Dropped = []
    if not len(candidates) or not (max_per_video or weights or max_clips):
        return dropped
    draw = {place: content_id("draw", clip_ids[place]) for place in candidates.tolist()}
    left = sorted(draw, key=lambda place: draw[place])

    def drop(reason: str, kept: list[int]) -> None:
        nonlocal left
        gone = sorted(set(left) - set(kept))
        dropped.append((reason, np.array(gone, np.int64)))
        left = kept

    if max_per_video:
        drop("over_max_per_video", _first_of_each(left, videos, dict.fromkeys(videos, max_per_video)))
    if weights:
        drop("source_left_out", [place for place in left if sources[place] in weights])
        shares = _counts_by_weight(left, sources, weights, max_clips)
        drop("over_source_share", _first_of_each(left, sources, shares))
    if max_clips:
        drop("over_max_clips", left[:max_clips])
    return [(reason, places) for reason, places in dropped if len(places)]


def _first_of_each(places: Sequence[int], names: Sequence[str], most: Mapping[str, int]) -> list[int]:
    """The first places of each name, in their order."""
    taken: dict[str, int] = {}
    kept = []
    for place in places:
        name = names[place]
        if taken.get(name, 0) < most[name]:
            taken[name] = taken.get(name, 0) + 1
            kept.append(place)
    return kept


def _counts_by_weight(
    places: Sequence[int], sources: Sequence[str], weights: Mapping[str, float], max_clips: int | None
) -> dict[str, int]:
    """Clips to take of each source: in the ratio of the weights, as many as the scarcest source allows.

    A source without any clip left is not scarce but absent; each of the others gives one at least.
    """
    have: dict[str, int] = {}
    for place in places:
        have[sources[place]] = have.get(sources[place], 0) + 1
    total = sum(weights[name] for name in have)
    scale = min((count / weights[name] for name, count in have.items()), default=0.0)
    if max_clips:
        scale = min(scale, max_clips / total)
    return {name: min(count, max(1, int(scale * weights[name] + 1e-9))) for name, count in have.items()}
