"""Train, validation and test: pinned by the owner of the footage, else by a hash, so that no clip leaks."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.source_card import SplitPin
from tasks.tables import content_id

SPLITS = ("train", "val", "test")


def split_of(clip: Mapping[str, Any], pins: Sequence[SplitPin], val_fraction: float, test_fraction: float) -> str:
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


def _covered_s(clip: Mapping[str, Any], pin: SplitPin) -> float:
    """Seconds of a clip that lie in a pinned span."""
    end_s = clip["end_s"] if pin.end_s is None else min(clip["end_s"], pin.end_s)
    return max(0.0, end_s - max(clip["start_s"], pin.start_s or 0.0))


def hashed_split(group: str, val_fraction: float, test_fraction: float) -> str:
    """Split by the hash of a video (or of a group of duplicates), so that all its clips share one."""
    position = int(content_id("split", group)[:8], 16) / 2**32
    if position < val_fraction:
        return "val"
    return "test" if position < val_fraction + test_fraction else "train"
