"""The split of each clip: train, val or test. Pins in a source.yaml decide, otherwise a hash of the video."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from pyramid_model.duplicates import components
from tasks.sources.card import SplitPin
from tasks.tables.content_ids import content_id
from tasks.tables.drop_reasons import PINS_CONFLICT
from tasks.tables.rows import ClipRow

SPLITS = ("train", "val", "test")


def splits_of(
    clips: Sequence[ClipRow],
    groups: Sequence[Sequence[int]],
    pins: Mapping[str, Sequence[SplitPin]],
    val_fraction: float,
    test_fraction: float,
) -> list[str]:
    """The split of each clip. Without pins, clips of one video and copies of a clip are always in the same split.

    Videos that share copies of a clip are linked: they are drawn together, by the smallest of their ids. Pins come
    before the draw. A clip of a video without pins takes the split of the pinned clips that it is a copy of; if there
    are none, the split of the pinned clips of the linked videos if they agree; otherwise train.

    Args:
        clips: rows of `clips`.
        groups: groups of copies, as positions in `clips`.
        pins: video id -> pins of its files.
        val_fraction: share of the videos without pins that is for validation.
        test_fraction: share of these videos that is for the test split.

    Returns:
        The split of each clip; "" for a clip that lies in two splits; PINS_CONFLICT for a clip whose group of copies is
        pinned to several splits.
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
    pinned_splits = {
        place: split_of(clip, pins[clip["video_id"]], val_fraction, test_fraction)
        for place, clip in enumerate(clips)
        if clip["video_id"] in pins
    }
    splits_of_links: dict[int, set[str]] = {}  # by linked videos
    for place, split in pinned_splits.items():
        splits_of_links.setdefault(label_of[place], set()).add(split)
    splits_of_copies = _splits_of_groups(groups, pinned_splits)
    return [
        splits_of_copies.get(place) or pinned_splits.get(place) or drawn.get(label) or _agreed(splits_of_links[label])
        if pinned_splits.get(place) != ""
        else ""
        for place, label in enumerate(label_of)
    ]


def _splits_of_groups(groups: Sequence[Sequence[int]], pinned_splits: Mapping[int, str]) -> dict[int, str]:
    """Split of the clips of groups with a pinned clip; PINS_CONFLICT where the pins of a group name several splits."""
    # Groups of different methods may share clips: a pin applies to all groups that are connected.
    members = sorted({place for group in groups for place in group})
    number = {place: at for at, place in enumerate(members)}
    links = [(number[group[0]], number[other]) for group in groups for other in group]
    first, second = np.array(links, np.int64).reshape(-1, 2).T
    labels = components(len(members), first, second).tolist()
    joined = sorted(zip(labels, members, strict=True))
    splits: dict[int, str] = {}
    for _, group in itertools.groupby(joined, key=lambda pair: pair[0]):
        places = [place for _, place in group]
        splits_of_pins = {pinned_splits[place] for place in places if place in pinned_splits}
        if splits_of_pins:
            split = next(iter(splits_of_pins)) if len(splits_of_pins) == 1 else ""
            splits |= dict.fromkeys(places, split or PINS_CONFLICT)
    return splits


def _agreed(splits: set[str]) -> str:
    """The split of pinned clips if all have the same, otherwise train."""
    return next(iter(splits)) if len(splits) == 1 and "" not in splits else "train"


def split_of(clip: ClipRow, pins: Sequence[SplitPin], val_fraction: float, test_fraction: float) -> str:
    """The split of a clip: that of the pin that covers it; "" when it lies in two splits.

    Parts of a pinned video that no pin covers are in train. A clip of a video without pins is drawn by the hash of its
    video.
    """
    if not pins:
        return hashed_split(clip["video_id"], val_fraction, test_fraction)
    frame_s = (clip["end_s"] - clip["start_s"]) / clip["num_frames"]
    overlaps_s = {pin: _covered_s(clip, pin) for pin in pins}
    # Times in source.yaml are rounded: an overlap of up to half a frame does not count.
    splits = {pin.split for pin, overlap_s in overlaps_s.items() if overlap_s > frame_s / 2}
    if clip["end_s"] - clip["start_s"] - sum(overlaps_s.values()) > frame_s / 2:
        splits.add("train")
    return splits.pop() if len(splits) == 1 else ""


def _covered_s(clip: ClipRow, pin: SplitPin) -> float:
    """Overlap of a clip with a pinned span, seconds."""
    end_s = clip["end_s"] if pin.end_s is None else min(clip["end_s"], pin.end_s)
    return max(0.0, end_s - max(clip["start_s"], pin.start_s or 0.0))


def hashed_split(group: str, val_fraction: float, test_fraction: float) -> str:
    """Split by the hash of a video id (or of the smallest id of linked videos), so that all its clips share one."""
    position = int(content_id("split", group)[:8], 16) / 2**32
    if position < val_fraction:
        return "val"
    return "test" if position < val_fraction + test_fraction else "train"
