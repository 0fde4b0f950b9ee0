"""The stages of the path from noise to data."""

import itertools

import pytest

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.schedule import Schedule


@pytest.fixture
def schedule():
    return Schedule(PyramidConfig())


def test_each_stage_is_told_where_the_one_below_stopped(schedule):
    ends = [(stage.first_timestep, stage.last_timestep) for stage in schedule.stages]
    assert ends[0][0] == 1000
    assert all(low[1] == high[0] for low, high in itertools.pairwise(ends))
    assert [stage.start for stage in schedule.stages] == pytest.approx([1.0, 0.8002399, 0.5007496])
    assert [stage.end for stage in schedule.stages] == pytest.approx([0.667, 0.334, 0.0])


def test_a_larger_shift_spends_more_of_the_path_at_high_noise(schedule):
    shifted = Schedule(PyramidConfig(shift=3.0))
    assert shifted.stages[0].end > schedule.stages[0].end
