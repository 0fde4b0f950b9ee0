"""Batches of mixed sizes and sources: what a step sees depends on (seed, step, rank), and the shares come out right."""

from collections import Counter
from functools import partial

import pytest

from pyramid_model.config import MiniFluxConfig, PyramidConfig
from pyramid_model.train.config import DiTLossConfig, MixConfig
from pyramid_model.train.flops import sample_flops
from pyramid_model.train.mixture import BatchPlan, num_tokens

LONG, SHORT, IMAGE = (16, 4, 8, 8), (16, 2, 8, 8), (16, 1, 8, 8)
SHAPES = [LONG] * 12 + [SHORT] * 20 + [IMAGE] * 30


def plan_of(mix: MixConfig, shapes=SHAPES, sources=None, num_batches=1, multiple_of=2) -> BatchPlan:
    return BatchPlan(shapes, sources or ["a"] * len(shapes), mix, 4, multiple_of, 0, num_batches)


def test_a_step_has_one_shape_and_as_many_samples_as_fill_the_budget():
    plan = plan_of(MixConfig(token_budget=5 * num_tokens(LONG)))
    sizes = {}
    for step in range(60):
        picked = plan.pick(step, 0)
        (shape,) = {SHAPES[i] for i in picked}
        sizes[shape] = len(picked)
    assert sizes == {LONG: 4, SHORT: 10, IMAGE: 20}  # multiples of two within the budget


def test_batches_of_all_sizes_cost_the_same_by_counted_flops():
    shapes = [(16, frames, *size) for frames in (1, 8, 16) for size in ((48, 80), (64, 64))]
    released = partial(sample_flops, MiniFluxConfig(), PyramidConfig(), DiTLossConfig(), num_text=128)
    spread = {}
    for name, cost in (("counted", released), ("naive", num_tokens)):
        plan = BatchPlan(shapes, [""] * 6, MixConfig(token_budget=600_000), 3, 3, 0, 1, cost)
        costs = [size * released(shape) for shape, size in zip(plan.shapes, plan.batch_sizes, strict=True)]
        spread[name] = max(costs) / min(costs) - 1
    assert spread["counted"] <= 0.1
    assert spread["naive"] > 4  # a batch of images of as many tokens takes five times as long


def test_every_sample_comes_once_an_epoch_and_batches_never_share_one():
    shapes = [LONG] * 16 + [SHORT] * 24
    plan = plan_of(MixConfig(), shapes, num_batches=2)
    steps = range(sum(plan.num_steps))
    seen = Counter(i for step in steps for index in (0, 1) for i in plan.pick(step, index))
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


def plan_of_one_shape(num_samples, batch_size, seed, num_batches=1) -> BatchPlan:
    return BatchPlan([LONG] * num_samples, [""] * num_samples, MixConfig(), batch_size, 1, seed, num_batches)


def test_every_sample_comes_up_equally_often_over_all_batches():
    plan = plan_of_one_shape(7, 2, 3, num_batches=2)
    drawn = [i for step in range(7) for index in (0, 1) for i in plan.pick(step, index)]
    assert sorted(drawn) == sorted(list(range(7)) * 4)


def test_batches_stay_what_they_were_when_models_were_trained_with_them():
    plan = plan_of_one_shape(7, 3, 11)
    drawn = [plan.pick(step, 0) for step in (0, 1, 2, 3, 4, 0)]
    assert drawn == [[1, 3, 5], [4, 2, 0], [6, 4, 5], [1, 2, 3], [0, 6, 2], [1, 3, 5]]


def test_an_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="training set is empty"):
        plan_of_one_shape(0, 2, 0)


def test_a_group_smaller_than_a_step_repeats_its_samples():
    plan = plan_of_one_shape(3, 4, 0, num_batches=2)
    assert sorted(Counter(plan.pick(0, 0) + plan.pick(0, 1)).values()) == [2, 3, 3]
    (_, line) = plan.describe(["a"] * 3, {"a": 3}, 10)
    assert line.endswith("fewer than the 8 of a step, so some repeat")


def test_the_plan_counts_clips_tokens_and_epochs_and_names_what_is_lost():
    plan = plan_of(MixConfig(image_share=0), num_batches=2)
    buckets = {LONG: "long", SHORT: "short", IMAGE: "image"}
    lines = plan.describe([buckets[shape] for shape in SHAPES], {"long": 12, "short": 23, "tiny": 2}, 9)
    assert lines == [
        "62 clips; 9 steps of 2 batches are 2.25 epochs",
        "image: 30 clips, 4 in a batch of 64 tokens, not used (mix)",
        "short: 20 clips, 4 in a batch of 128 tokens, 2 steps an epoch",
        "long: 12 clips, 4 in a batch of 256 tokens, 2 steps an epoch",
        "short: 3 selected clips lack data",
        "tiny: 2 selected clips lack data",
    ]


def test_samples_of_a_step_share_one_shape_and_every_sample_comes_up():
    shapes = [LONG] * 6 + [SHORT] * 2
    plan, seen = plan_of(MixConfig(), shapes, num_batches=2), set()
    for step in range(40):
        positions = plan.pick(step, 0) + plan.pick(step, 1)
        assert len({shapes[position] for position in positions}) == 1
        seen.update(positions)
    assert seen == set(range(8))


def test_a_sample_that_cannot_be_read_is_replaced_by_the_next_of_its_shape():
    plan = plan_of(MixConfig())
    assert plan.readable(5, lambda position: str(position)) == (5, "5")
    assert plan.readable(11, {3: "three", 20: "of another shape"}.get) == (3, "three")
    assert plan.readable(11, lambda position: None) is None


def test_the_largest_batch_has_the_most_tokens():
    plan = plan_of(MixConfig(token_budget=10 * num_tokens(IMAGE)))
    assert {SHAPES[i] for i in plan.largest()} == {IMAGE}  # of the others fewer fit into the budget
    assert {SHAPES[i] for i in plan_of(MixConfig()).largest()} == {LONG}
