"""Groups of clips that show the same, with the clip that stays and why."""

import pytest

from tasks.report.duplicates import read_duplicates, why_first
from tasks.tables.content_ids import content_id

CLIP_IDS = [content_id("clip", number) for number in range(8)]


def test_a_group_of_duplicates_begins_with_its_keeper_and_says_why_it_is(curated_root, curation):
    duplicates = read_duplicates(curated_root, curation)
    assert duplicates.extra_clips == {"phash": 2}
    [first] = [group for group in duplicates.groups if group.members[0].clip["clip_id"] == CLIP_IDS[0]]
    assert [(member.clip["clip_id"], member.rank) for member in first.members] == [(CLIP_IDS[0], 0), (CLIP_IDS[1], 1)]
    assert first.reason == "larger file: 100 B, the next 99 B"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"width": 32, "height": 18}, "more pixels: 64×36, the next 32×18"),
        ({"num_frames": 40, "size_bytes": 200}, "longer: 80 frames, the next 40"),
        ({"num_frames": 78, "size_bytes": 50}, "larger file: 100 B, the next 50 B"),
        ({}, "equal in pixels and bytes, about equal in length: the smallest id"),
    ],
)
def test_the_keeper_is_explained_by_the_first_figure_in_which_it_is_ahead(changed, why):
    clip = {"width": 64, "height": 36, "size_bytes": 100, "num_frames": 80}
    assert why_first(clip, clip | changed) == why
