"""Packed training gives the loss and the gradients of training unit by unit, with fewer FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.branch_attention import branch_attention, flex_attention, flex_mask
from pyramid_model.dit.branches import make_branch_packing, noisy_clips, ordinary_columns
from pyramid_model.dit.packing import make_packing
from pyramid_model.dit.transformer import size_of
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.packed import packed_columns
from pyramid_model.flow.path import units_in
from pyramid_model.flow.schedule import Schedule
from pyramid_model.train.config import DiTLossConfig
from pyramid_model.train.flops import call_flops, sample_flops

FRAMES = 7


@pytest.fixture
def clean_dit(dit):
    """Either DiT, with clean history time."""
    return type(dit)(type(dit.config).model_validate(dit.config.model_dump() | {"history_time": "clean"}))


@pytest.fixture(params=[(3, 1), (2, 2), (1, 3)], ids=lambda sizes: "{}-stages-{}-frames-a-unit".format(*sizes))
def packed(request, clean_dit):
    """(the DiT with random weights, packed columns of two samples a stage, one text row a sample)."""
    torch.manual_seed(3)
    for parameter in clean_dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    num_stages, per_unit = request.param
    schedule = Schedule(PyramidConfig(num_stages=num_stages, frames_per_unit=per_unit))
    latents = torch.randn(2 * num_stages, 4, FRAMES, 16, 16, generator=torch.Generator().manual_seed(2))
    units = range(units_in(FRAMES, per_unit))
    columns = packed_columns(latents, schedule, Noise(torch.Generator().manual_seed(1)), (1,) * num_stages, units)
    return clean_dit, columns


def rows_of(packed):
    return [row for of_columns in zip(*packed.rows, strict=True) for row in of_columns]


def unit_by_unit(dit, packed, text):
    """Velocity of each noisy clip, computed by a call of its own."""
    calls, number = [], 0
    for column, branches, rows in zip(packed.columns, packed.branches, packed.rows, strict=True):
        for alone in ordinary_columns(column, branches) if branches else [column]:
            calls += dit([alone], packed.timestep[number], text.rows(rows))
            number += 1
    return calls


def loss_and_gradients(dit, velocities, targets):
    loss = torch.stack([(v - target).square().mean() for v, target in zip(velocities, targets, strict=True)]).mean()
    return loss, torch.autograd.grad(loss, list(dit.parameters()))


@pytest.fixture
def unmasked(monkeypatch):
    """One call of attention for each frame, as in long sequences."""
    for module in ("attention", "branch_attention"):
        monkeypatch.setattr(f"pyramid_model.dit.{module}.MAX_MASKED", 0)
    for layouts in (make_packing, make_branch_packing):
        layouts.cache_clear()
    yield
    for layouts in (make_packing, make_branch_packing):
        layouts.cache_clear()


@pytest.mark.parametrize("fixture", ["packed", "unmasked"], ids=["one mask", "a call for each frame"])
def test_loss_and_gradients_equal_those_of_single_units(packed, text_rows, request, fixture):
    request.getfixturevalue(fixture)
    dit, columns = packed
    text = text_rows(len(columns.rows[0]) * 3)
    timestep = torch.stack(columns.timestep, dim=1).flatten()
    together = dit(columns.columns, timestep, text.rows(rows_of(columns)), branches=columns.branches)
    loss, gradients = loss_and_gradients(dit, together, columns.targets)
    expected_loss, expected = loss_and_gradients(dit, unit_by_unit(dit, columns, text), columns.targets)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for gradient, other in zip(gradients, expected, strict=True):
        assert float((gradient - other).abs().max()) <= 1e-5 * largest


def test_every_unit_of_every_stage_carries_loss_once(packed):
    _, columns = packed
    num_stages = 1 + max(columns.stages)
    num_units = 1 + max(columns.units)
    assert sorted(zip(columns.stages, columns.units, strict=True)) == [
        (stage, unit) for stage in range(num_stages) for unit in range(num_units)
    ]
    shapes = [clip.shape for clip in noisy_clips(columns.columns, columns.branches)]
    assert shapes == [target.shape for target in columns.targets]


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_torch_counts_the_operations_of_the_closed_form_and_fewer_than_unit_by_unit(clean_dit, text_rows, unmasked):
    schedule = Schedule(PyramidConfig())
    latents, text = torch.randn(3, 4, 31, 16, 16), text_rows(3).rows([0, 0, 0])
    columns = packed_columns(latents, schedule, Noise(torch.Generator()), (1, 1, 1), range(31))
    timestep = torch.stack(columns.timestep, dim=1).flatten()
    with torch.no_grad():
        together = counted(
            lambda: clean_dit(columns.columns, timestep, text.rows(rows_of(columns)), branches=columns.branches)
        )
        alone = counted(lambda: unit_by_unit(clean_dit, columns, text))
    each = sample_flops(clean_dit.config, PyramidConfig(), DiTLossConfig(), (4, 31, 16, 16), num_text=4)
    assert together == pytest.approx(each, rel=1e-3)
    sizes = [[size_of(clip) for clip in column] for column in columns.columns]
    assert call_flops(clean_dit.config, sizes, 4, branches=columns.branches).total == together
    assert alone > 1.5 * together


@pytest.mark.parametrize("shape", [(16, 31, 48, 80), (16, 31, 96, 160)], ids=["384p", "768p"])
@pytest.mark.parametrize("config", [MiniFluxConfig(), MMDiTConfig()], ids=["miniFLUX", "MMDiT"])
def test_of_ten_seconds_at_released_size_a_trained_unit_needs_at_least_1_6_times_fewer_flops(config, shape):
    clean = type(config)(history_time="clean")
    loss = DiTLossConfig(sample_ratios=(1, 2, 1))
    alone = sample_flops(config, PyramidConfig(), loss, shape, num_text=128)  # one unit
    together = sample_flops(clean, PyramidConfig(), loss, shape, num_text=128) / shape[1]
    assert alone >= 1.6 * together


def test_units_that_are_left_out_cost_nothing(clean_dit):
    costs = [
        sample_flops(clean_dit.config, PyramidConfig(), DiTLossConfig(packed_units=n), (4, 16, 8, 16), num_text=4)
        for n in (4, 8, 16, 99)
    ]
    assert costs[0] * 4 == pytest.approx(costs[2])
    assert costs[2] == costs[3]


def test_flex_attention_finds_what_one_call_a_frame_finds(packed):
    _, columns = packed
    for column, branches in zip(columns.columns, columns.branches, strict=True):
        if branches:
            sizes = tuple(size_of(clip) for clip in column)
            packing = make_branch_packing((sizes,), (branches,), (4, 2), (8,), torch.device("cpu"))
            q, k, v = torch.randn(3, 2, sum(packing.lengths), 2, 8)
            pads, spans = (0, 2), packing.spans[0]
            expected = branch_attention(q, k, v, spans, pads)
            mask = flex_mask(spans, pads, torch.device("cpu"))
            torch.testing.assert_close(flex_attention(q, k, v, mask, pads), expected, rtol=1e-4, atol=1e-5)


def test_a_model_whose_history_depends_on_the_noisy_clip_is_refused(dit, text_rows):
    columns = packed_columns(
        torch.randn(1, 4, 3, 8, 8), Schedule(PyramidConfig(num_stages=1)), Noise(torch.Generator()), (1,), range(3)
    )
    with pytest.raises(AssertionError, match="must not depend on their timesteps"):
        dit(columns.columns, torch.zeros(3), text_rows(2), branches=columns.branches)
