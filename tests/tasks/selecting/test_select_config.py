"""Limits that a recipe may set, checked against the records of the scorers."""

import pytest
from pydantic import ValidationError

from pyramid_model.metrics.facts import SCORER_FACTS
from tasks.selecting.select import select
from tasks.selecting.select_config import PRESETS, SelectConfig
from tasks.tables.schemas import CLIP_FIGURES


@pytest.mark.parametrize(
    ("scorer", "limits", "message"),
    [
        ("text_area", {"max": 5}, r"thresholds.text_area: 5 is outside of its range.*share of the frame .*\(0 to 1\)"),
        ("motion", {"min": -1}, "thresholds.motion: -1 is outside of its range"),
        ("phash", {"min": 0}, r"thresholds.phash: 0 is outside of its range.*\(no number\)"),
    ],
)
def test_a_limit_that_no_clip_could_meet_or_miss_is_refused(scorer, limits, message):
    with pytest.raises(ValueError, match=message):
        SelectConfig.model_validate({"thresholds": {scorer: limits}})
    with pytest.raises(ValueError, match=message):
        SelectConfig.model_validate({"sets": [{"name": "a", "buckets": ["64x64x9@8"], "thresholds": {scorer: limits}}]})


def test_limits_on_scores_that_a_recipe_names_and_on_figures_of_the_clip_are_free():
    thresholds = {"watermark": {"max": 7}, "duration_s": {"max": 1e6}, "sharpness": {"min": 1e6}}
    assert set(SelectConfig.model_validate({"thresholds": thresholds}).thresholds) == set(thresholds)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_limits_each_score_on_its_worse_side(preset):
    for scorer, limits in PRESETS[preset].items():
        if scorer in CLIP_FIGURES:
            continue
        sides = {name.partition("_")[0] for name in limits}
        expected = {"higher": {"min"}, "lower": {"max"}, "neither": {"min", "max"}}
        assert sides == expected[SCORER_FACTS[scorer].better], scorer


def test_a_preset_is_a_set_of_limits_of_which_each_may_be_changed_or_lifted(tables):
    config = SelectConfig(preset="pretrain", thresholds={"aesthetic": {"min": 5}, "text_area": {}})
    assert config.thresholds["aesthetic"].min == 5
    assert set(config.rules().thresholds) == {"duration_s", "motion", "aesthetic", "nsfw"}
    assert SelectConfig.model_validate(config.model_dump(mode="json")) == config
    assert SelectConfig(preset="finetune").thresholds["duration_s"].min == 4
    with pytest.raises(ValueError, match=r"no clip has a score \['aesthetic', 'nsfw'\].*remove the limit with \{\}"):
        select(tables.run, config)


def test_limits_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="min 5 is above max 2: no clip could pass"):
        SelectConfig(thresholds={"motion": {"min": 5, "max": 2}})


def test_a_family_of_buckets_becomes_its_sizes():
    assert SelectConfig(buckets=("384px9@24",)).buckets[0] == "384x640x9@24"
