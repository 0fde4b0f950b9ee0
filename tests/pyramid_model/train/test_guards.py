"""Memory that a training holds, before its first step."""

import torch

from pyramid_model.train.config import OptimConfig
from pyramid_model.train.guards import PeakWatch, memory_plan, peak_gb, state_bytes
from pyramid_model.train.loop import TrainState


def test_the_plan_counts_what_a_training_holds():
    state = TrainState.start(torch.nn.Linear(999, 1), OptimConfig())
    sizes = state_bytes(state.objective, state.optimizers, state.ema.shadow)
    assert sizes == {"weights": 4000, "gradients": 4000, "optimiser": 8008, "averages": 4000}  # 2 counters of 4 bytes
    assert "0.0 MB (weights 0.0, gradients 0.0" in memory_plan(sizes)
    assert peak_gb() > 0.01


def test_memory_that_grows_by_a_fifth_is_reported(caplog):
    watch = PeakWatch()
    for step, peak in ((10, 1.0), (20, 1.1), (30, 1.3), (40, 1.4), (50, 1.6)):
        watch.note(step, peak)
    assert [record.getMessage()[:37] for record in caplog.records] == [
        "memory grows: the steps up to 30 need",
        "memory grows: the steps up to 50 need",
    ]
