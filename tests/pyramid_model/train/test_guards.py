"""Memory that a training holds, before its first step."""

import torch

from pyramid_model.train.config import OptimConfig
from pyramid_model.train.guards import memory_plan, peak_gb, state_bytes
from pyramid_model.train.loop import TrainState


def test_the_plan_counts_what_a_training_holds():
    state = TrainState.start(torch.nn.Linear(999, 1), OptimConfig())
    sizes = state_bytes(state.objective, state.optimizer, state.ema.shadow)
    assert sizes == {"weights": 4000, "gradients": 4000, "optimiser": 8008, "averages": 4000}  # 2 counters of 4 bytes
    assert "0.0 MB (weights 0.0, gradients 0.0" in memory_plan(sizes)
    assert peak_gb() > 0.01
