"""Validation of a DiT by stage and part of the path, and its roll-out."""

import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.train.config import DiTLossConfig
from pyramid_model.train.dit_validation import NUM_BINS, rollout_gap, validate_dit

PYRAMID = PyramidConfig(num_stages=2)


def test_validation_of_a_dit_is_the_same_every_time_and_its_parts_add_up(dit, latents):
    figures = [validate_dit(dit, *latents, PYRAMID, DiTLossConfig()) for _ in range(2)]
    assert figures[0] == figures[1]
    whole = figures[0]
    stages = [whole[f"val_loss_stage{stage}"] for stage in (0, 1)]
    assert sum(stages) / 2 == pytest.approx(whole["val_loss"])
    for stage in (0, 1):
        bins = [whole[f"val_loss_stage{stage}_bin{number}"] for number in range(NUM_BINS)]
        assert sum(bins) / NUM_BINS == pytest.approx(whole[f"val_loss_stage{stage}"])


def test_the_noisiest_part_of_the_finest_path_is_the_first_bin(dit, latents):
    """A model that predicts zero has the mean square of the velocity as its loss, which no part of a path changes."""
    dit.initialise()
    figures = validate_dit(dit, *latents, PYRAMID, DiTLossConfig(), num_draws=40)
    bins = [figures[f"val_loss_stage1_bin{number}"] for number in range(NUM_BINS)]
    assert max(bins) / min(bins) < 1.1
    seen = []
    dit.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    validate_dit(dit, *latents, PyramidConfig(num_stages=1), DiTLossConfig(), max_units=1)
    means = [float(timestep.mean()) for timestep in seen]
    assert means == sorted(means, reverse=True)  # timestep 1000 is noise
    assert [int(mean // 250) for mean in means] == [3, 2, 1, 0]


def test_a_roll_out_has_two_losses_of_each_later_unit_and_the_first_ones_are_equal(dit, latents):
    clips, texts = latents
    long = [torch.cat([clip, clip.flip(1)], dim=1) for clip in clips]  # six latent frames
    figures = rollout_gap(dit, long, texts, PYRAMID)
    assert set(figures) == {f"val_loss_unit{unit}{name}" for unit in range(1, 6) for name in ("", "_rollout")}
    assert (
        figures["val_loss_unit1"] == figures["val_loss_unit1_rollout"]
    )  # its history is the first unit, which is given
    assert all(figures[f"val_loss_unit{unit}"] != figures[f"val_loss_unit{unit}_rollout"] for unit in range(2, 6))
    assert figures == rollout_gap(dit, long, texts, PYRAMID)


def test_clips_of_two_units_have_no_roll_out(dit, latents):
    clips, texts = latents
    assert rollout_gap(dit, [clip[:, :2] for clip in clips], texts, PYRAMID) == {}
