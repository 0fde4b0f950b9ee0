"""Facts about the count of operations. Runs in about 6 s."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.packing import clip_positions
from pyramid_model.dit.transformer import size_of
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.flow.sampler import Sampling, sample_video
from pyramid_model.text import stack_features
from pyramid_model.train.config import DiTLossConfig
from pyramid_model.train.dit_loss import DiTObjective
from pyramid_model.train.flops import (
    Reuse,
    call_flops,
    generation_flops,
    history_frames,
    mfu,
    sample_flops,
    train_flops,
)

LINEAR = (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.convolution, torch.ops.aten.linear)
FIVE_S, TEN_S, SMALL = (16, 96, 160), (31, 96, 160), (16, 48, 80)  # 768x1280 px twice, then 384x640 px
ONCE = Reuse(refresh_every=None)
COLUMNS = {
    "an image": [[(1, 4, 8)]],
    "a clip without history": [[(3, 4, 4)]],
    "history of two resolutions": [[(2, 2, 4), (1, 4, 8), (1, 8, 16)]],
    "two columns": [[(1, 2, 2), (2, 4, 4)], [(3, 2, 2), (1, 8, 4)]],
}


def counted_linear(run):
    """Operations of linear layers as torch counts them."""
    # In inference mode, in which the sampler runs, a linear layer is not split into the operations that torch counts.
    linear = {torch.ops.aten.linear: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]}
    with FlopCounterMode(display=False, custom_mapping=linear) as counter:
        run()
    return sum(counter.get_flop_counts()["Global"].get(op, 0) for op in LINEAR)


def released(config, size, **options):
    """PFLOP of a clip by the recommended settings."""
    guidance = [7.0] + [5.0] * (size[0] - 1)
    steps = ((20, 20, 20), (10, 10, 10))
    return generation_flops(config, Sampling(PyramidConfig(), size, *steps, guidance), 128, **options).total / 1e15


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_linear_layers_are_counted_as_torch_counts_them(dit, text_rows, columns):
    clips = [[torch.randn(2, 4, *size) for size in column] for column in columns]
    rows = 2 * len(columns)
    called = counted_linear(lambda: dit(clips, torch.full((rows,), 400.0), text_rows(rows)))
    assert call_flops(dit.config, columns, num_text=4, batch=2).linear == called


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_attention_is_counted_by_the_pairs_that_may_meet(dit, columns):
    pairs, all_pairs = 0, 0
    for column in columns:
        time = torch.cat([torch.zeros(4, dtype=torch.float64), clip_positions(tuple(column))[:, 0]])
        pairs += int((time[:, None] >= time).sum())
        all_pairs += len(time) ** 2
    each = 4 * dit.config.dim * 2  # two products, of queries with keys and of weights with values; two blocks
    assert call_flops(dit.config, columns, num_text=4).attention == each * pairs
    assert call_flops(dit.config, columns, num_text=4, dense=True).attention == each * all_pairs
    free = type(dit.config).model_validate(dit.config.model_dump() | {"causal": False})
    assert call_flops(free, columns, num_text=4).attention == each * all_pairs


@pytest.mark.parametrize("frames_per_unit", [1, 2])
@pytest.mark.parametrize(
    ("history_time", "refresh_every", "max_bytes", "counted"),
    [
        ("shared", 1, 0, Reuse()),
        ("shared", 1, 2**30, Reuse(across_units=True)),
        ("shared", 2, 0, Reuse(refresh_every=2)),
        ("shared", 2, 2**30, Reuse(across_units=True, refresh_every=2)),
        ("clean", 1, 0, Reuse(refresh_every=None)),
        ("clean", 1, 2**30, Reuse(across_units=True, refresh_every=None)),
    ],
)
def test_a_clip_costs_the_calls_that_the_sampler_makes(
    dit, text_rows, frames_per_unit, history_time, refresh_every, max_bytes, counted
):
    dit.config = type(dit.config).model_validate(dit.config.model_dump() | {"history_time": history_time})
    pyramid, size = PyramidConfig(frames_per_unit=frames_per_unit), (5, 8, 16)
    guidance = [3.0, 2.0, 2.0, 2.0, 2.0][: 1 + 4 // frames_per_unit]
    noise = Noise(torch.Generator().manual_seed(0))
    sampling = Sampling(pyramid, size, (3, 2, 1), (1, 2, 3), guidance)
    reuse = Unmeasured(dit, refresh_every, max_bytes)
    text = text_rows(1)
    sampled = counted_linear(lambda: sample_video(dit, text, text, sampling, noise, reuse=reuse))
    assert generation_flops(dit.config, sampling, num_text=4, reuse=counted).linear == sampled


class Unmeasured(HistoryReuse):
    """Without the calls by which the error of a rarer refresh is measured."""

    def _measure(self, *args):
        pass


def test_a_training_step_costs_three_forward_passes(dit):
    columns = COLUMNS["two columns"]
    assert train_flops(dit.config, columns, 4, batch=2).total == 3 * call_flops(dit.config, columns, 4, batch=2).total


@pytest.mark.parametrize(
    ("config", "size", "options", "expected"),
    [
        (MiniFluxConfig(), FIVE_S, {"dense": True}, 17.85),
        (MiniFluxConfig(), FIVE_S, {}, 15.30),
        (MiniFluxConfig(), FIVE_S, {"reuse": ONCE}, 7.09),
        (MiniFluxConfig(), FIVE_S, {"reuse": Reuse(across_units=True, refresh_every=None)}, 6.76),
        (MiniFluxConfig(), FIVE_S, {"reuse": Reuse(refresh_every=2)}, 10.74),
        (MiniFluxConfig(), FIVE_S, {"reuse": Reuse(refresh_every=5)}, 8.01),
        (MiniFluxConfig(), TEN_S, {"dense": True}, 50.67),
        (MiniFluxConfig(), TEN_S, {}, 41.33),
        (MiniFluxConfig(), TEN_S, {"reuse": ONCE}, 15.65),
        (MiniFluxConfig(), TEN_S, {"reuse": Reuse(across_units=True, refresh_every=None)}, 14.08),
        (MiniFluxConfig(), SMALL, {"dense": True}, 3.39),
        (MiniFluxConfig(), SMALL, {"reuse": ONCE}, 1.32),
        (MMDiTConfig(), FIVE_S, {"dense": True}, 12.55),
        (MMDiTConfig(), FIVE_S, {"reuse": ONCE}, 4.97),
        (MMDiTConfig(), TEN_S, {"dense": True}, 36.06),
        (MMDiTConfig(), TEN_S, {"reuse": ONCE}, 11.08),
    ],
)
def test_released_models_cost_what_was_worked_out_by_hand(config, size, options, expected):
    """PFLOP by 24 d^2 operations a token and layer, without the ends of the model: within 1 %."""
    assert released(config, size, **options) == pytest.approx(expected, rel=0.01)


def test_keeping_the_oldest_frames_saves_a_fifth_of_5_s_and_more_of_10_s_though_timesteps_are_shared():
    kept = Reuse(across_units=True)
    five, ten = (1 - released(MiniFluxConfig(), s, reuse=kept) / released(MiniFluxConfig(), s) for s in (FIVE_S, TEN_S))
    assert five == pytest.approx(0.22, abs=0.01)
    assert ten == pytest.approx(0.38, abs=0.01)


def test_nothing_is_kept_until_the_first_frame_has_its_coarsest_form():
    """Text sees the first frame, and every frame sees text."""
    pyramid, config = PyramidConfig(), MiniFluxConfig()
    assert [history_frames(FIVE_S, pyramid, 2, unit) for unit in (1, 2, 3, 4)] == [
        [3840],
        [960, 3840],
        [240, 960, 3840],
        [240, 240, 960, 3840],
    ]

    def saved(num_frames):
        sampling = Sampling(pyramid, (num_frames, 96, 160), (0, 0, 1), (0, 0, 1), [1.0] * num_frames)
        plain, reused = (
            generation_flops(config, sampling, 128, reuse=reuse) for reuse in (None, Reuse(across_units=True))
        )
        return plain.total - reused.total

    assert [saved(n) > 0 for n in (2, 3, 4, 5)] == [False, False, False, True]


def test_units_that_are_given_cost_nothing_but_the_history_that_they_are():
    sampling = Sampling(PyramidConfig(), (3, 8, 16), (1, 1, 1), (1, 1, 1), [1.0, 1.0, 1.0])
    config = MiniFluxConfig()
    whole, rest = (generation_flops(config, sampling, 4, num_given=n) for n in (0, 1))
    columns = [[[(1, 2 * 2**s, 4 * 2**s)]] for s in range(3)]
    assert whole.total - rest.total == sum(call_flops(config, column, 4).total for column in columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (2, 12, 16)}, "multiples of 8 latents"),
        ({"guidance": [1.0]}, "1 guidance scales for 2 units"),
        ({"steps": (1, 1)}, "one entry for each of 3 stages"),
    ],
)
def test_settings_that_do_not_fit_the_pyramid_are_refused(changes, message):
    settings = {"size": (2, 8, 16), "first_steps": (1, 1, 1), "steps": (1, 1, 1), "guidance": [1.0, 1.0]} | changes
    with pytest.raises(ValueError, match=message):
        Sampling(PyramidConfig(), **settings)


def test_a_history_that_is_never_computed_is_refused():
    with pytest.raises(ValueError, match="refresh_every 0"):
        Reuse(refresh_every=0)


def test_mfu_is_the_share_of_the_peak():
    assert mfu(395e12, 1.0, 790e12) == 0.5
    with pytest.raises(ValueError, match="must both be more than 0"):
        mfu(1.0, 0.0, 790e12)


@pytest.mark.parametrize("autoregressive", [True, False])
def test_the_cost_of_a_sample_is_the_mean_of_what_steps_compute(dit, autoregressive):
    pyramid, loss = PyramidConfig(num_stages=2), DiTLossConfig(autoregressive=autoregressive, sample_ratios=(1, 2))
    latents, calls = torch.randn(3, dit.config.latent_channels, 3, 8, 8), []
    dit.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    objective = DiTObjective(dit, pyramid, loss)
    text = stack_features([(torch.randn(5, dit.config.text_dim), torch.randn(dit.config.pooled_dim))] * 3)
    for step in range(3):
        objective(latents, text, torch.Generator(), step, 0)
    columns = [[[size_of(clip) for clip in column] for column in call] for call in calls]
    counted = [train_flops(dit.config, call, 5).total / 3 for call in columns]
    assert sample_flops(dit.config, pyramid, loss, (4, 3, 8, 8), 5) == pytest.approx(sum(counted) / 3)
