"""What a training refuses before it starts."""

import pytest

from pyramid_model.train.config import MixConfig
from pyramid_model.train.mixture import BatchPlan
from tasks.running.errors import StepError
from tasks.training.job import TrainingConfig, check_disjoint


def test_workers_that_cannot_divide_the_batches_of_a_step_are_refused():
    TrainingConfig.model_validate({"num_workers": 4, "num_batches": 2, "parallel": {"share_batch": 2}})
    with pytest.raises(ValueError, match=r"4 workers cannot divide num_batches 6: set num_batches to a multiple of 4"):
        TrainingConfig(num_workers=4, num_batches=6)


def test_a_clip_of_both_splits_is_refused():
    check_disjoint(["a", "b"], ["c"])
    with pytest.raises(StepError, match="1 clips are in the splits train and val, such as b: run the select step"):
        check_disjoint(["a", "b"], ["b", "c"])


def test_an_epoch_on_two_numbers_of_workers_has_every_sample_once():
    shape = (16, 2, 8, 8)
    plan = BatchPlan([shape] * 48, [""] * 48, MixConfig(), 2, 1, 0, 4)
    seen = []
    for step in range(6):
        config = TrainingConfig(num_workers=4 if step < 3 else 2, num_batches=4)
        for rank in range(config.num_workers):
            for index, _ in config.parallel.batches_of_rank(4, rank, config.num_workers):
                seen += plan.pick(step, index)
    assert sorted(seen) == list(range(48))


def test_a_range_of_workers_rises_and_needs_no_groups():
    config = TrainingConfig.model_validate({"num_workers": [2, 6], "num_batches": 6, "parallel": {"share_weights": 0}})
    assert (config.num_workers, config.fewest_workers) == ((2, 6), 2)
    for workers in ([4, 2], [2, 7]):
        with pytest.raises(ValueError, match="must rise, and be at most num_batches 6"):
            TrainingConfig.model_validate({"num_workers": workers, "num_batches": 6})
    for parallel in ({"share_batch": 2}, {"share_weights": 2}):
        with pytest.raises(ValueError, match="does not divide into the groups"):
            TrainingConfig.model_validate({"num_workers": [2, 4], "num_batches": 4, "parallel": parallel})
