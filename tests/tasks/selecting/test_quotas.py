"""Quotas of videos and sources among the clips to train on."""

import pytest

from tasks.selecting.select import select

ALL_TRAIN = {"val_fraction": 0.0, "min_val_clips": 0}


def test_no_video_gives_more_than_its_quota_and_new_clips_change_few_choices(tables, with_changes):
    tables.many(e=40, g=3)
    tables.videos(attempt=2, a=[], c=[])
    tables.videos(e=[f"e{number}" for number in range(30)], g=["g0", "g1", "g2"])
    config = with_changes(max_per_video=10, **ALL_TRAIN)
    select(tables.run, config)
    before = tables.kept()
    assert len(before) == 13
    assert {"g0", "g1", "g2"} < before
    tables.videos(attempt=2, e=[f"e{number}" for number in range(40)])
    select(tables.run, config)
    after = tables.kept()
    assert len(after) == 13
    assert len(before - after) == len(after - before)
    assert len(after - before) == sum(int(name[1:]) >= 30 for name in after if name[0] == "e")


def test_sources_are_mixed_by_their_weights_as_far_as_the_scarcest_goes(tables, with_changes):
    tables.many(e=30, g=8, h=5)
    tables.videos(attempt=2, a=[], c=[])
    tables.videos(source="films", e=[f"e{number}" for number in range(30)])
    tables.videos(source="phones", g=[f"g{number}" for number in range(8)])
    tables.videos(source="cams", h=[f"h{number}" for number in range(5)])
    for max_clips, expected in ((None, (24, 8)), (12, (9, 3))):
        select(tables.run, with_changes(sources={"films": 3, "phones": 1}, max_clips=max_clips, **ALL_TRAIN))
        chosen = tables.kept()
        assert tuple(sum(name[0] == letter for name in chosen) for letter in "eg") == expected
        assert not any(name[0] == "h" for name in chosen)
    with pytest.raises(ValueError, match=r"no clip comes from a source \['film'\].*\['cams', 'films', 'phones'\]"):
        select(tables.run, with_changes(sources={"film": 1}))


def test_quotas_leave_validation_clips_alone(tables, with_changes):
    select(tables.run, with_changes(max_clips=1))
    assert len(tables.kept()) == 2
    assert "c0" in tables.kept()
