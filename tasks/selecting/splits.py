"""Train, validation and test: pinned by the owner of the footage, else by a hash, so that no clip leaks."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from pyramid_model.duplicates import components
from tasks.sources.card import SplitPin
from tasks.tables.delta import content_id
from tasks.tables.rows import ClipRow

SPLITS = ("train", "val", "test")


def splits_of(
    clips: Sequence[ClipRow],
    groups: Sequence[Sequence[int]],
    pins: Mapping[str, Sequence[SplitPin]],
    val_fraction: float,
    test_fraction: float,
) -> list[str]:
    """The split of each clip, such that copies and clips of one video never come into two that nobody has chosen.

    Videos that share a copy of a clip are drawn as one, by the smallest of their ids. Pins go before that: a clip of a
    video without pins follows the pinned clips that it is a copy of, else those of the linked videos if they agree,
    else it is for training.

    Args:
        clips: rows of `clips`.
        groups: clips that show the same, as positions in `clips`.
        pins: video id -> pins of its files.
        val_fraction: share of the videos without pins.
        test_fraction: the same.

    Returns:
        A split each, "" for a clip that lies in two, or CONFLICT for one whose copies are pinned to another.
    """
    videos = sorted({clip["video_id"] for clip in clips})
    number = {video_id: place for place, video_id in enumerate(videos)}
    links = {
        (number[clips[group[0]]["video_id"]], number[clips[other]["video_id"]]) for group in groups for other in group
    }
    first, second = np.array(sorted(links), np.int64).reshape(-1, 2).T
    linked = components(len(videos), first, second).tolist()
    smallest = {label: videos[place] for place, label in reversed(list(enumerate(linked)))}
    pinned_links = {linked[number[video_id]] for video_id in pins if video_id in number}
    drawn = {
        label: hashed_split(video_id, val_fraction, test_fraction)
        for label, video_id in smallest.items()
        if label not in pinned_links
    }
    label_of = [linked[number[clip["video_id"]]] for clip in clips]
    if not pinned_links:
        return [drawn[label] for label in label_of]
    own = {
        place: split_of(clip, pins[clip["video_id"]], val_fraction, test_fraction)
        for place, clip in enumerate(clips)
        if clip["video_id"] in pins
    }
    chosen: dict[int, set[str]] = {}  # by linked videos
    for place, split in own.items():
        chosen.setdefault(label_of[place], set()).add(split)
    copied = _splits_of_groups(groups, own)
    return [
        copied.get(place) or own.get(place) or drawn.get(label) or _agreed(chosen[label])
        if own.get(place) != ""
        else ""
        for place, label in enumerate(label_of)
    ]


CONFLICT = "pins_conflict"


def _splits_of_groups(groups: Sequence[Sequence[int]], own: Mapping[int, str]) -> dict[int, str]:
    """Split of the clips in groups with a pinned one: that of the pins, or CONFLICT when they name several."""
    # Groups of several methods may share clips, and a pin reaches all that is connected.
    members = sorted({place for group in groups for place in group})
    number = {place: at for at, place in enumerate(members)}
    links = [(number[group[0]], number[other]) for group in groups for other in group]
    first, second = np.array(links, np.int64).reshape(-1, 2).T
    labels = components(len(members), first, second).tolist()
    joined = sorted(zip(labels, members, strict=True))
    found: dict[int, str] = {}
    for _, group in itertools.groupby(joined, key=lambda pair: pair[0]):
        places = [place for _, place in group]
        named = {own[place] for place in places if place in own}
        if named:
            split = next(iter(named)) if len(named) == 1 else ""
            found |= dict.fromkeys(places, split or CONFLICT)
    return found


def _agreed(splits: set[str]) -> str:
    """The one split of pinned clips, else training."""
    return next(iter(splits)) if len(splits) == 1 and "" not in splits else "train"


def split_of(clip: ClipRow, pins: Sequence[SplitPin], val_fraction: float, test_fraction: float) -> str:
    """The split of a clip: that of the pin it lies in, else by the hash of its video; "" when it lies in two.

    What no pin covers in a video that has pins goes to training: its owner has chosen the rest.
    """
    if not pins:
        return hashed_split(clip["video_id"], val_fraction, test_fraction)
    frame_s = (clip["end_s"] - clip["start_s"]) / clip["num_frames"]
    covered = {pin: _covered_s(clip, pin) for pin in pins}
    # Spans are written with few decimals: half a frame over the edge is rounding.
    touched = {pin.split for pin, covered_s in covered.items() if covered_s > frame_s / 2}
    if clip["end_s"] - clip["start_s"] - sum(covered.values()) > frame_s / 2:
        touched.add("train")
    return touched.pop() if len(touched) == 1 else ""


def _covered_s(clip: ClipRow, pin: SplitPin) -> float:
    """Seconds of a clip that lie in a pinned span."""
    end_s = clip["end_s"] if pin.end_s is None else min(clip["end_s"], pin.end_s)
    return max(0.0, end_s - max(clip["start_s"], pin.start_s or 0.0))


def hashed_split(group: str, val_fraction: float, test_fraction: float) -> str:
    """Split by the hash of a video, so that all its clips share one."""
    position = int(content_id("split", group)[:8], 16) / 2**32
    if position < val_fraction:
        return "val"
    return "test" if position < val_fraction + test_fraction else "train"
