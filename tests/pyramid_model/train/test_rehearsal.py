"""The largest batch is tried before the first step, and nothing of it stays."""

import sys

import pytest
import torch

from pyramid_model.train.config import OptimConfig
from pyramid_model.train.guards import state_bytes
from pyramid_model.train.loop import Batch, TrainState
from pyramid_model.train.rehearsal import DoesNotFit, rehearse


class Wide(torch.nn.Module):
    """One layer, whose activations are `width` values a sample."""

    def __init__(self, width: int):
        super().__init__()
        self.layer = torch.nn.Linear(1, width)

    def forward(self, x):
        return self.layer(x).relu().square().mean(), {}


def sizes_of(objective) -> dict[str, int]:
    state = TrainState.start(objective, OptimConfig())
    return state_bytes(objective, state.optimizers, state.ema.shadow)


def test_weights_gradients_and_random_numbers_are_as_before():
    objective = Wide(4)
    before = {name: weight.clone() for name, weight in objective.state_dict().items()}
    generator = torch.get_rng_state()
    rehearse(objective, Batch((torch.ones(3, 1),), ["a", "b", "c"]), sizes_of(objective))
    assert all(torch.equal(weight, before[name]) for name, weight in objective.state_dict().items())
    assert all(weight.grad is None for weight in objective.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak memory of a process")
def test_activations_are_measured_although_the_process_needed_more_before():
    torch.ones(2**27).sum()  # 512 MiB
    objective = Wide(2**18)
    activations = rehearse(objective, Batch((torch.ones(100, 1),), ["a"]), sizes_of(objective))
    assert 2 * 100 * 2**20 < activations < 8 * 100 * 2**20  # of the layer and of relu, and gradients


def test_a_batch_that_does_not_fit_stops_with_the_plan_and_what_to_change():
    objective = Wide(2**20)
    batch = Batch((torch.ones(1, 1).expand(2**26, 1),), ["clip-7"])  # 256 TiB of activations
    with pytest.raises(DoesNotFit, match=r"first clip-7\) does not fit on cpu\. Plan of the memory of each"):
        rehearse(objective, batch, sizes_of(objective))


def test_another_error_is_passed_on():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        rehearse(Wide(4), Batch((torch.ones(3, 2),), ["a"]), sizes_of(Wide(4)))
