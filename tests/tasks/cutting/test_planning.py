"""Every frame of a shot is in one clip or accounted for, and streaming decides as hindsight would. Under 1 s."""

from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from tasks.cutting.planning import ClipRules, ShotSplitter, next_length, plan_clips


@dataclass
class Frame:
    index: int
    starts_shot: bool = False
    is_corrupt: bool = False
    is_blended: bool = False


def film(length: int, cuts=(), corrupt=()) -> list[Frame]:
    return [Frame(index, index in cuts, index in corrupt) for index in range(length)]


def planned(frames: list[Frame], rules: ClipRules) -> list[tuple[int, int, int]]:
    """(shot, first frame, frame after the last) of each clip."""
    spans, clip = [], []
    for shot, frame, is_last in plan_clips(frames, rules):
        clip.append(frame.index)
        if is_last:
            assert clip == list(range(clip[0], clip[-1] + 1))
            spans.append((shot, clip[0], clip[-1] + 1))
            clip = []
    assert clip == []
    return spans


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize(("low", "high"), [(2, 2), (2, 5), (3, 4), (4, 8), (5, 8), (10, 48)])
def test_streaming_splits_like_hindsight_and_holds_few_frames(low, high, overlap):
    overlap = min(overlap, low - 1)
    rules = ClipRules(min_frames=low, max_frames=high, margin_frames=0, overlap_frames=overlap)
    for length in range(3 * high + 2 * low):
        expected, start = [], 0
        while taken := next_length(length - start, rules):
            expected.append((0, start, start + taken))
            start += taken - overlap
        assert planned(film(length), rules) == expected
        assert all(low <= end - first <= high for _, first, end in expected)
        if 2 * low - overlap <= high + 1 and length >= low:
            assert start + overlap == length, "nothing is dropped where a shorter clip could take it"
    splitter: ShotSplitter[int] = ShotSplitter(rules)
    held = 0
    for index in range(5 * high):
        held += 1
        for _, is_last in splitter.add(index):
            held -= 1 - overlap * is_last
        assert held <= max(high, 2 * low)


def test_clips_end_at_cuts_and_leave_the_margin_out():
    rules = ClipRules(min_frames=5, max_frames=20, margin_frames=2)
    assert planned(film(60, cuts=(20, 27, 41)), rules) == [(0, 0, 18), (2, 29, 39), (3, 43, 60)]


def test_without_margin_the_new_shot_starts_with_its_first_frame():
    rules = ClipRules(min_frames=5, max_frames=50, margin_frames=0)
    assert planned(film(30, cuts=(12,)), rules) == [(0, 0, 12), (1, 12, 30)]


def test_no_corrupt_frame_is_in_a_clip():
    rules = ClipRules(min_frames=4, max_frames=50, margin_frames=1)
    assert planned(film(30, cuts=(20,), corrupt=(9, 10, 27)), rules) == [(0, 0, 9), (0, 11, 19), (1, 21, 27)]


def test_no_blended_frame_is_in_a_clip_and_margins_are_kept_to_them():
    frames = film(40, cuts=(22,))
    for index in range(20, 25):
        frames[index].is_blended = True
    assert planned(frames, ClipRules(min_frames=4, max_frames=50, margin_frames=2)) == [(0, 0, 18), (1, 27, 40)]


def test_consecutive_clips_share_the_frames_of_the_overlap():
    rules = ClipRules(min_frames=5, max_frames=10, margin_frames=0, overlap_frames=3)
    # 11 frames are not 10 and a rest of 4, but 9 and 5.
    assert planned(film(30, cuts=(19,)), rules) == [(0, 0, 10), (0, 7, 17), (0, 14, 19), (1, 19, 28), (1, 25, 30)]


def test_shots_that_are_too_short_give_nothing():
    rules = ClipRules(min_frames=10, max_frames=20, margin_frames=1)
    assert planned(film(11, cuts=(10,)), rules) == []
    assert planned([], rules) == []


def test_bounds_in_the_wrong_order_are_refused_with_the_settings_to_change():
    with pytest.raises(ValidationError, match=r"overlap_frames 5 is not below min_frames 5.*clips\.overlap_frames"):
        ClipRules(min_frames=5, max_frames=20, overlap_frames=5)
    with pytest.raises(ValidationError, match=r"min_frames 30 is above max_frames 20.*clips\.min_frames"):
        ClipRules(min_frames=30, max_frames=20)
