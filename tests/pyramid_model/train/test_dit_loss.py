"""The loss of the DiT and its validation."""

import pytest
import torch
from torch import nn

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.schedule import Schedule
from pyramid_model.train.batches import dit_batch, step_generator
from pyramid_model.train.config import DiTLossConfig
from pyramid_model.train.dit_loss import DiTObjective, dit_loss

PYRAMID = PyramidConfig(num_stages=2)


def test_untrained_dit_predicts_zero_and_its_loss_is_the_size_of_the_velocity(dit, text_rows):
    dit.initialise()
    latents = torch.zeros(8, 4, 1, 8, 8)
    schedule = Schedule(PyramidConfig(num_stages=1))
    loss, parts = dit_loss(dit, latents, text_rows(8), schedule, Noise(step_generator(0, 0)), (1,), (1,))
    assert float(loss.detach()) == pytest.approx(1, rel=0.1)  # velocity = noise - 0
    assert float(parts["loss_stage0"]) == pytest.approx(float(loss.detach()))


def test_units_take_turns_so_that_every_unit_of_every_stage_is_trained(tiny_dit, latents):
    seen = set()

    class Spy(nn.Module):
        def forward(self, columns, timestep, text):
            seen.update((stage, 1 + sum(clip.shape[2] for clip in column[:-1])) for stage, column in enumerate(columns))
            return tiny_dit(columns, timestep, text)

    objective = DiTObjective(tiny_dit, PYRAMID, DiTLossConfig())
    objective.dit = Spy()
    clips, texts = latents
    for step in range(3):
        generator = step_generator(0, step)
        objective(*dit_batch(clips, texts, texts[0], [0, 1], generator), generator, step, 0)
    assert seen == {(stage, unit) for stage in range(2) for unit in (1, 2, 3)}


@pytest.mark.parametrize(("packed_units", "expected"), [(None, 3), (2, 2), (9, 3)])
def test_with_clean_history_time_a_step_trains_several_units_of_every_clip(dit, latents, packed_units, expected):
    dit = type(dit)(type(dit.config).model_validate(dit.config.model_dump() | {"history_time": "clean"}))
    objective = DiTObjective(dit, PYRAMID, DiTLossConfig(packed_units=packed_units))
    called = []
    dit.register_forward_pre_hook(
        lambda _, args, kwargs: called.append((args[1], kwargs["branches"])), with_kwargs=True
    )
    clips, texts = latents
    generator = step_generator(0, 0)
    loss, parts = objective(*dit_batch(clips, texts, texts[0], [0, 1, 2, 3], generator), generator, 0, 0)
    assert loss.isfinite()
    assert set(parts) == {"loss_stage0", "loss_stage1"}
    assert [len(timestep) for timestep, _ in called] == [2 * 2 * expected]  # two samples of each of two stages
