"""The promotion gate as a pure function (under a second)."""

import math

import pytest

from tasks.models.gate import GateConfig, decide, failures, passed

GOOD = {"num_not_finite": 0, "val_loss": 0.8, "val_loss_untrained": 1.2, "vae_psnr": 25.0, "vae_psnr_linear": 24.6}
CONFIG = GateConfig()


def verdict(**changes) -> bool:
    return passed(decide(GOOD | changes, CONFIG))


def test_a_model_that_learnt_passes():
    assert verdict()


def test_an_untrained_model_fails_since_it_equals_itself():
    assert not verdict(val_loss=GOOD["val_loss_untrained"])


@pytest.mark.parametrize("name", ["val_loss", "val_loss_untrained", "vae_psnr", "num_not_finite"])
@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_figure_that_is_missing_or_not_finite_never_passes(name, value):
    assert not verdict(**{name: value})


@pytest.mark.parametrize(("champion", "expected"), [(0.80, True), (0.793, True), (0.79, False), (None, True)])
def test_a_candidate_may_be_at_most_one_percent_worse_than_the_champion(champion, expected):
    assert verdict(val_loss_champion=champion) is expected


def test_a_vae_that_loses_to_linear_algebra_fails():
    assert not verdict(vae_psnr=24.5)
    assert verdict(vae_psnr=24.6)


@pytest.mark.parametrize(("baseline", "named"), [("linear", "linear predictor"), ("no_text", "empty text")])
def test_a_dit_that_loses_to_a_linear_predictor_or_to_itself_without_text_fails_with_that_sentence(baseline, named):
    figures = GOOD | {f"val_loss_{baseline}": 0.79}
    check = next(check for check in decide(figures, CONFIG) if not check.passed)
    assert check.name == f"val_loss_to_{baseline}"
    assert named in check.rule
    assert verdict(**{f"val_loss_{baseline}": 0.8})


def test_frozen_and_wild_samples_fail_when_motion_is_judged():
    config = GateConfig(motion_range=(0.5, 2.0))
    for motion, expected in [(1.0, True), (0.01, False), (9.0, False)]:
        assert passed(decide(GOOD | {"motion": motion, "motion_data": 1.0}, config)) is expected
    assert not passed(decide(GOOD, config))


def test_failures_are_named_with_value_and_limit():
    text = failures(decide(GOOD | {"val_loss": 1.2, "num_not_finite": 3}, CONFIG))
    assert "finite is 3, limit 0" in text
    assert "val_loss_to_untrained is 1, limit 0.9" in text


def test_a_gate_that_asked_nothing_passes_nothing():
    assert not passed([])
