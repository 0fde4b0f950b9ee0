"""Settings of training."""

import pytest

from pyramid_model.train.config import OptimConfig, ParallelConfig, VAEBatchConfig


def test_first_steps_may_see_still_frames_only():
    config = VAEBatchConfig(num_frames=9, image_steps=2, image_batch_size=16)
    assert [config.at(step, batch_size=3) for step in range(4)] == [(16, 1), (16, 1), (3, 9), (3, 9)]


def test_warmup_must_end_before_training_does():
    with pytest.raises(ValueError, match="warmup_steps 5 must be less than num_steps 5"):
        OptimConfig(num_steps=5, warmup_steps=5)


def test_ranks_that_share_a_batch_compute_the_same_ones():
    first, second = [(0, 1.0), (1, 1.0)], [(2, 1.0), (3, 1.0)]
    config = ParallelConfig(share_batch=2)
    assert [config.batches_of_rank(4, rank, 4) for rank in range(4)] == [first, first, second, second]


@pytest.mark.parametrize(("num_batches", "num_ranks"), [(4, 3), (5, 2), (8, 8), (7, 4)])
def test_every_batch_has_the_same_weight_in_the_mean_over_ranks_and_all_ranks_have_as_many(num_batches, num_ranks):
    of_ranks = [ParallelConfig().batches_of_rank(num_batches, rank, num_ranks) for rank in range(num_ranks)]
    assert len({len(batches) for batches in of_ranks}) == 1
    used = [(index, weight) for batches in of_ranks for index, weight in batches if weight]
    assert [index for index, _ in used] == list(range(num_batches))
    weights = [weight for batches in of_ranks for _, weight in batches]
    assert len({weight for _, weight in used}) == 1
    assert sum(weights) / len(weights) == pytest.approx(1)
