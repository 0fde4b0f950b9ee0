"""The record of every scorer agrees with what the scorer returns."""

import numpy as np
import pytest

from pyramid_model.metrics.facts import BY_FRAME, NAMED_BY_RECIPE, SCORER_FACTS, SHARPNESS, ScorerFacts
from pyramid_model.metrics.scorers import IN_DECODE_PASS, SCORERS, ClipView
from pyramid_model.video.video import write_video

RNG = np.random.default_rng(0)
SLOPE = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
CLIPS = {
    "noise": RNG.integers(0, 256, (12, 48, 64), dtype=np.uint8),
    "black": np.zeros((12, 48, 64), np.uint8),
    "white": np.full((12, 48, 64), 255, np.uint8),
    "moving": np.stack([np.roll(SLOPE, 2 * t, axis=1) for t in range(12)]),
}


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> list[ClipView]:
    folder = tmp_path_factory.mktemp("facts")
    for name, frames in CLIPS.items():
        write_video(str(folder / f"{name}.mp4"), np.repeat(frames[..., None], 3, axis=-1), 24)
    return [ClipView(frames, 24.0, str(folder / f"{name}.mp4")) for name, frames in CLIPS.items()]


@pytest.mark.parametrize("name", SCORERS)
def test_values_and_details_are_those_of_the_record(views, name):
    facts = SCORER_FACTS[name]
    for view in views:
        value, details = SCORERS[name](view)
        assert value is None or facts.can_be(value), value
        assert set(details) <= set(facts.details)
    value, details = SCORERS[name](views[0])
    assert (value is not None) == facts.has_value
    assert set(details) == set(facts.details)


def test_scorers_without_a_model_are_those_that_are_computed_here():
    assert set(SCORERS) == {name for name, facts in SCORER_FACTS.items() if not facts.weights}
    assert set(IN_DECODE_PASS) == {name for name, facts in SCORER_FACTS.items() if facts.reads == "decode pass"}


@pytest.mark.parametrize("facts", [*SCORER_FACTS.values(), *NAMED_BY_RECIPE.values()], ids=lambda facts: facts.name)
def test_a_record_is_complete(facts):
    assert facts.measures
    if facts.reads in ("decode pass", "clip file"):
        assert facts.cost
        assert (facts.sample is None) == (not facts.has_value)
    else:
        assert facts.weights
    if facts.sample:
        least, median, most = facts.sample
        assert least <= median <= most
        assert facts.can_be(least)
        assert facts.can_be(most)
    assert facts.of_frames is None or facts.of_frames in facts.details
    assert (facts.details is BY_FRAME) <= (facts.reads in ("sampled frames", "embeddings"))


def test_the_label_of_an_axis_has_the_unit_or_else_the_range():
    share = ScorerFacts(name="x", measures="share of frames", better="lower", reads="decode pass")
    assert (share.axis, share.direction, share.range_text) == ("share of frames, 0 to 1", "lower is better", "0 to 1")
    speed = ScorerFacts(name="x", measures="speed", unit="px", high=None, better="neither", reads="decode pass")
    assert (speed.axis, speed.direction, speed.range_text) == ("speed, px", "", "0 and more")
    assert SHARPNESS.axis == "variance of the Laplacian of luma"


def test_a_bound_is_possible_inside_the_range_only():
    share = ScorerFacts(name="x", measures="share", better="lower", reads="decode pass")
    assert [share.can_be(value) for value in (-0.1, 0, 0.5, 1, 5)] == [False, True, True, True, False]
    assert SHARPNESS.can_be(1e9)
    assert not SCORER_FACTS["phash"].can_be(0)
    assert SCORER_FACTS["aesthetic"].can_be(-3)
