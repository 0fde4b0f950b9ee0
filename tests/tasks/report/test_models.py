"""What the report says of trained models and their verdicts."""

import pytest

from tasks.models.gate import Check
from tasks.report.models import bucket_shape, flat_figures, sign, summary, validation_charts


def test_nested_settings_become_lines_and_only_long_lists_are_left_out():
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": list(range(99)), "e": [{"f": 1}], "g": []}
    assert flat_figures(nested) == [("a.b", 1), ("a.c", "1, 2"), ("g", "none")]


def test_a_training_clip_is_shown_in_the_shape_of_its_bucket():
    assert (bucket_shape("384x640x121@24"), bucket_shape("")) == ("640/384", "")


@pytest.mark.parametrize(
    ("value", "limit", "passed", "expected"), [(0.5, 0.9, True, "≤"), (2, 1, True, "≥"), (1.0, 0.9, False, "≤")]
)
def test_the_side_of_a_limit_is_told_from_the_verdict(value, limit, passed, expected):
    assert sign(Check(name="loss", value=value, limit=limit, passed=passed, rule="")) == expected


def test_what_a_model_has_learnt_stands_beside_chance_linear_algebra_and_no_text():
    samples = {"retrieval": 0.75, "retrieval_chance": 1 / 19, "sample_psnr": 17.24}
    losses = {"val_loss": 0.25, "val_loss_linear": 0.284, "val_loss_no_text": 0.251}
    assert summary(samples | losses) == (
        "75% of the clips sampled from training captions are nearest to the training clip of their caption "
        "(5% by chance), at 17.2 dB PSNR; the loss on held-out clips is 0.25, that of a linear predictor 0.284, "
        "without text 0.251."
    )
    assert summary(losses).startswith("The loss on held-out clips is 0.25")
    assert summary({}) == ""


def test_losses_along_the_path_and_by_unit_are_two_charts():
    figures = {
        f"val_loss_stage{s}_bin{b}{end}": 0.1 * b for s in range(3) for b in range(4) for end in ("", "_untrained")
    }
    units = {f"val_loss_unit{u}{end}": 0.2 for u in (1, 2) for end in ("", "_rollout")}
    path, by_unit = validation_charts(figures | units | {"val_loss": 1.0})
    assert path.legend == [("stage 0", "c1"), ("stage 1", "c2"), ("stage 2", "c3")]
    assert path.svg.count("<circle") == 12
    assert by_unit.svg.count("<circle") == 4
    assert validation_charts({"val_loss": 1.0}) == []
