"""Batches of mixed sizes and sources: what a step sees depends on (seed, step, rank), and the shares come out right."""

from collections import Counter

import pytest

from pyramid_model.train.config import MixConfig
from pyramid_model.train.mixture import BatchPlan, num_tokens

LONG, SHORT, IMAGE = (16, 4, 8, 8), (16, 2, 8, 8), (16, 1, 8, 8)
SHAPES = [LONG] * 12 + [SHORT] * 20 + [IMAGE] * 30


def plan_of(mix: MixConfig, shapes=SHAPES, sources=None, world_size=1, multiple_of=2) -> BatchPlan:
    return BatchPlan(shapes, sources or ["a"] * len(shapes), mix, 4, multiple_of, 0, world_size)


def test_a_step_has_one_shape_and_as_many_samples_as_fill_the_budget():
    plan = plan_of(MixConfig(token_budget=5 * num_tokens(LONG)))
    sizes = {}
    for step in range(60):
        picked = plan.pick(step, 0)
        (shape,) = {SHAPES[i] for i in picked}
        sizes[shape] = len(picked)
    assert sizes == {LONG: 4, SHORT: 10, IMAGE: 20}  # multiples of two within the budget


def test_every_sample_comes_once_an_epoch_and_workers_never_share_one():
    shapes = [LONG] * 16 + [SHORT] * 24
    plan = plan_of(MixConfig(), shapes, world_size=2)
    steps = range(sum(plan.num_steps))
    seen = Counter(i for step in steps for rank in (0, 1) for i in plan.pick(step, rank))
    assert seen == Counter(range(40))
    assert all(not set(plan.pick(step, 0)) & set(plan.pick(step, 1)) for step in range(100))


def test_epochs_differ_and_a_new_plan_repeats_them():
    plan, again = plan_of(MixConfig()), plan_of(MixConfig())
    assert [again.pick(step, 0) for step in (37, 2, 90)] == [plan.pick(step, 0) for step in (37, 2, 90)]
    length = sum(plan.num_steps)
    assert [plan.pick(step, 0) for step in range(length)] != [plan.pick(step + length, 0) for step in range(length)]


def test_sources_come_in_their_shares_however_small_their_group():
    sources = ["many"] * 11 + ["few"] + ["many"] * 30 + ["few"] * 20
    weights = {"many": 1.0, "few": 3.0}
    plan = plan_of(MixConfig(source_weights=weights), sources=sources)
    seen = Counter(sources[i] for step in range(3000) for i in plan.pick(step, 0))
    assert seen["few"] / seen.total() == pytest.approx(0.75, abs=0.02)
    only = plan_of(MixConfig(source_weights={"many": 0.0, "few": 1.0}), sources=sources)
    assert {sources[i] for step in range(50) for i in only.pick(step, 0)} == {"few"}


def test_images_have_their_share_of_the_steps():
    plan = plan_of(MixConfig(image_share=0.25))
    images = sum(SHAPES[plan.pick(step, 0)[0]] == IMAGE for step in range(10 * sum(plan.num_steps)))
    assert images / (10 * sum(plan.num_steps)) == pytest.approx(0.25, abs=0.03)
    videos_only = plan_of(MixConfig(image_share=0))
    assert IMAGE not in {SHAPES[videos_only.pick(step, 0)[0]] for step in range(100)}


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match=r"names \['b'\]; it must name every source of the training clips.*\['a'\]"):
        plan_of(MixConfig(source_weights={"b": 1.0}))
    with pytest.raises(ValueError, match="there are no images"):
        plan_of(MixConfig(image_share=0.5), [LONG] * 4)
    with pytest.raises(ValueError, match="at least one must be more than 0"):
        MixConfig(source_weights={"a": 0.0})
