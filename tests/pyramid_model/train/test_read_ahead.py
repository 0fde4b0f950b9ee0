"""Prefetch of the next step's batch."""

import pytest

from pyramid_model.train.read_ahead import ReadAhead


def test_each_step_is_read_once_and_none_after_the_last():
    steps = []
    ahead = ReadAhead(lambda step: steps.append(step) or step * 10, num_steps=3)
    assert [ahead(step) for step in range(3)] == [0, 10, 20]
    assert steps == [0, 1, 2]


def test_an_error_is_raised_at_the_step_that_it_belongs_to():
    ahead = ReadAhead(lambda step: 1 // (1 - step), num_steps=2)
    assert ahead(0) == 1
    with pytest.raises(ZeroDivisionError):
        ahead(1)
