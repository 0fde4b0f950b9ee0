"""The linear predictor that a DiT has to beat."""

import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.schedule import Schedule
from pyramid_model.metrics.linear_predictor import NUM_BINS, LinearPredictor, time_bins
from pyramid_model.train.config import DiTLossConfig
from pyramid_model.train.dit_validation import validate_dit

ONE_STAGE = PyramidConfig(num_stages=1)
TEXT = (torch.zeros(1, 4), torch.zeros(4))


def loss_of(predictor, clips, pyramid, num_draws=16, **config) -> float:
    figures = validate_dit(predictor, clips, [TEXT] * len(clips), pyramid, DiTLossConfig(**config), num_draws=num_draws)
    return figures["val_loss"]


def test_on_white_noise_it_reaches_the_least_error_that_any_predictor_has():
    """Data y and noise n are independent unit normals: x = t n + (1 - t) y, and the error of the best guess of n - y
    from x is 2 - (2 t - 1)^2 / (t^2 + (1 - t)^2)."""
    clips = list(torch.randn(24, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    least = float((2 - (2 * t - 1) ** 2 / (t**2 + (1 - t) ** 2)).mean())
    predictor = LinearPredictor.fit(clips[:16], ONE_STAGE, units=[1])
    assert loss_of(predictor, clips[16:], ONE_STAGE, num_draws=128) == pytest.approx(least, rel=0.02)


def test_a_still_clip_is_predicted_from_its_history():
    frames = torch.randn(12, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    still = list(frames.expand(-1, -1, 3, -1, -1))
    no_corruption = PyramidConfig(num_stages=2, corrupt_ratio=0)
    alone = loss_of(LinearPredictor.fit(still[:8], no_corruption), still[8:], no_corruption, autoregressive=False)
    with_history = LinearPredictor.fit(still[:8], no_corruption, units=[1, 2, 3])
    assert loss_of(with_history, still[8:], no_corruption) < 0.6 * alone  # unit 1 of 3 has no history


def test_every_bin_of_every_stage_has_its_timesteps():
    schedule = Schedule(PyramidConfig())
    for number, stage in enumerate(schedule.stages):
        bins = time_bins(schedule, stage.timesteps())
        assert bins.unique().tolist() == list(range(number * NUM_BINS, (number + 1) * NUM_BINS))
        assert (bins.diff() >= 0).all()  # from the noisy end to the clean end


def test_clips_of_several_shapes_and_of_a_single_frame_are_fitted():
    clips = [torch.randn(4, 3, 8, 16), torch.randn(4, 1, 8, 8)]
    predictor = LinearPredictor.fit(clips, PyramidConfig(), units=[1, 3], num_draws=2)
    assert predictor.weights.isfinite().all()
