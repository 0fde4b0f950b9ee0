"""Training on CPUs with tiny models: what a step sees, what it learns from, and that nothing depends on luck (20 s)."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pyramid_model.config import PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.schedule import Schedule
from pyramid_model.metrics.quality import psnr
from pyramid_model.text import stack_features
from pyramid_model.train.batches import batch_indices, dit_batch, step_generator, vae_batch
from pyramid_model.train.config import DiTLossConfig, OptimConfig, VAEBatchConfig, VAELossConfig
from pyramid_model.train.dit_loss import DiTObjective, dit_loss, validate_dit
from pyramid_model.train.ema import EMA
from pyramid_model.train.loop import Batch, TrainingDiverged, TrainState, learning_rate, make_optimizer, train
from pyramid_model.train.vae_init import initialise_vae
from pyramid_model.train.vae_loss import VAEObjective, reconstruct, vae_loss, validate_vae
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.pixels import to_uint8

OPTIM = OptimConfig(num_steps=4, batch_size=3, lr=1e-2, warmup_steps=1, log_every=1, ema_decay=0.5)
PYRAMID = PyramidConfig(num_stages=2)


@pytest.fixture
def clips():
    """Two clips of 12 frames, 32x48 px, of smooth colours that drift."""
    y, x, t = np.meshgrid(np.arange(32), np.arange(48), np.arange(12), indexing="ij")
    planes = [127 + 90 * np.sin((a * x + b * y + 3 * t) / 15) for a, b in ((1, 0), (0, 1), (1, 1))]
    clip = np.stack(planes, axis=-1).astype(np.uint8).transpose(2, 0, 1, 3)
    return [clip, 255 - clip]


@pytest.fixture
def latents():
    """Five normalised latents (4 3 8 8) and the features of their texts."""
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(2 + i % 3, 6, generator=generator), torch.randn(5, generator=generator)) for i in range(5)]
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(5)], rows


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_every_sample_comes_up_equally_often_over_all_workers():
    drawn = [i for step in range(7) for rank in (0, 1) for i in batch_indices(7, 2, 3, step, rank, world_size=2)]
    assert sorted(drawn) == sorted(list(range(7)) * 4)


def test_batches_are_functions_of_seed_step_and_rank():
    assert batch_indices(9, 4, seed=1, step=5) == batch_indices(9, 4, seed=1, step=5)
    draws = [
        torch.rand(3, generator=step_generator(*key)).tolist() for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    assert len({tuple(draw) for draw in draws}) == 4


def test_batches_stay_what_they_were_when_models_were_trained_with_them():
    drawn = [batch_indices(7, 3, 11, step) for step in (0, 1, 2, 3, 4, 0)]
    assert drawn == [[1, 3, 5], [4, 2, 0], [6, 4, 5], [1, 2, 3], [0, 6, 2], [1, 3, 5]]


def test_an_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="training set is empty"):
        batch_indices(0, 2, 0, 0)


def test_vae_cuts_are_frames_of_the_clip_in_order(clips):
    batch = vae_batch(clips, [0, 1, 0], 9, step_generator(0, 0), crop=16)
    assert batch.shape == (3, 3, 9, 16, 16)
    whole = vae_batch(clips, [0] * 8, 9, step_generator(0, 1))
    possible = [clips[0][start : start + 9] for start in range(4)]
    possible += [clip[:, :, ::-1] for clip in possible]
    for cut in to_uint8(whole + 1e-3):
        assert any(np.array_equal(cut, other) for other in possible)


def test_a_clip_that_is_too_short_is_named(clips):
    with pytest.raises(ValueError, match="clip 1 has 12 frames, fewer than the 17"):
        vae_batch(clips, [1], 17, step_generator(0, 0))


def test_first_steps_may_see_still_frames_only():
    config = VAEBatchConfig(num_frames=9, image_steps=2, image_batch_size=16)
    assert [config.at(step, batch_size=3) for step in range(4)] == [(16, 1), (16, 1), (3, 9), (3, 9)]


def test_dropped_texts_become_the_null_text_at_the_given_rate(latents):
    clips, texts = latents
    null = (torch.zeros(1, 6), torch.full((5,), 9.0))
    _, text = dit_batch(clips, texts, null, [0, 1, 2, 3, 4] * 200, step_generator(0, 0), dropout=0.1)
    dropped = (text.pooled == 9).all(1)
    assert dropped.float().mean() == pytest.approx(0.1, abs=0.03)
    assert (text.mask[dropped].sum(1) == 1).all()


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_vae_loss_is_the_weighted_sum_of_its_parts(tiny_vae, clips):
    frames = vae_batch(clips, [0], 9, step_generator(0, 0))
    config = VAELossConfig(mse_weight=2, l1_weight=3, kl_weight=0.5)
    loss, parts = vae_loss(tiny_vae, frames, config, step_generator(0, 1))
    assert float(loss.detach()) == pytest.approx(
        float(2 * parts["mse"] + 3 * parts["l1"] + 0.5 * parts["kl"]), rel=1e-5
    )


def test_a_fresh_vae_tells_plain_frames_of_different_brightness_apart():
    """Group norm alone makes them nearly alike; the constant channels of `initialise_vae` keep them apart."""
    stack = VAEStackConfig(channels=(16,) * 4, layers=(1,) * 4, norm_groups=2)
    torch.manual_seed(0)
    vae = CausalVideoVAE(VAEConfig(latent_channels=4, encoder=stack, decoder=stack)).eval()
    dark, bright = (torch.full((1, 3, 9, 32, 48), level) for level in (0.3, 0.6))

    @torch.no_grad()
    def contrast() -> float:
        restored = [vae.decode(vae.encode(frames).mode()) for frames in (dark, bright)]
        return float((restored[0] - restored[1]).abs().mean())

    random = contrast()
    initialise_vae(vae, step_generator(0, 0))
    assert random < 0.02
    assert contrast() > 0.1


def test_a_fresh_vae_looks_at_one_frame_at_a_time(tiny_vae, clips):
    initialise_vae(tiny_vae, step_generator(0, 0))
    changed = clips[0].copy()
    changed[:8] = 0
    latent, other = (
        tiny_vae.encode(vae_batch([clip], [0], 9, step_generator(0, 0))).mode() for clip in (clips[0][:9], changed[:9])
    )
    torch.testing.assert_close(latent[:, :, 1], other[:, :, 1])


def test_validation_of_a_vae_counts_every_clip_the_same(tiny_vae, clips):
    cut = [clip[:9] for clip in clips]
    figures = validate_vae(tiny_vae, cut)
    assert figures["val_psnr"] == pytest.approx(np.mean([psnr(c, reconstruct(tiny_vae, c)) for c in cut]))


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


def test_validation_of_a_dit_is_the_same_every_time(dit, latents):
    figures = [validate_dit(dit, *latents, PYRAMID, DiTLossConfig(), num_draws=2) for _ in range(2)]
    assert figures[0] == figures[1]
    assert set(figures[0]) == {"val_loss", "val_loss_stage0", "val_loss_stage1"}


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_learning_rate_rises_then_falls_to_its_floor():
    config = OptimConfig(num_steps=101, lr=1.0, warmup_steps=10, min_lr_ratio=0.1)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[10], rates[55], rates[100]) == pytest.approx((1.0, 0.55, 0.1))


def test_biases_and_norms_do_not_decay(tiny_vae):
    decaying, rest = make_optimizer(tiny_vae, OPTIM).param_groups
    assert all(weight.ndim > 1 for weight in decaying["params"])
    assert decaying["weight_decay"] > 0 == rest["weight_decay"]
    assert len(decaying["params"]) + len(rest["params"]) == len(list(tiny_vae.parameters()))


def test_ema_moves_in_bf16_models_too():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.9999)
    ema.num_updates = 10**9
    nn.init.ones_(model.weight)
    for _ in range(100):
        ema.update(model)
    assert float(ema.shadow["weight"]) == pytest.approx(1 - 0.9999**100, rel=1e-3)


def test_swapping_twice_gives_the_trained_weights_back_exactly(tiny_vae):
    before = [weight.clone() for weight in tiny_vae.parameters()]
    ema = EMA(tiny_vae, 0.5)
    with torch.no_grad():
        for weight in tiny_vae.parameters():
            weight.add_(0.1)
    trained = [weight.clone() for weight in tiny_vae.parameters()]
    ema.swap(tiny_vae)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_vae.parameters(), strict=True))
    ema.swap(tiny_vae)
    assert all(torch.equal(a, b) for a, b in zip(trained, tiny_vae.parameters(), strict=True))


@pytest.fixture(params=["vae", "dit", "mmdit"])
def training(request, tiny_vae, tiny_dit, tiny_mmdit, clips, latents):
    """`training()`: (objective, batch_for_step) of each model, the same at every call."""
    models = {"vae": tiny_vae, "dit": tiny_dit, "mmdit": tiny_mmdit}
    weights = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in models.items()}

    def make():
        model = models[request.param]
        model.load_state_dict(weights[request.param])
        if request.param == "vae":
            return VAEObjective(model, VAELossConfig()), vae_step
        return DiTObjective(model, PYRAMID, DiTLossConfig()), dit_step

    def vae_step(step: int) -> Batch:
        generator = step_generator(0, step)
        return Batch((vae_batch(clips, [step % 2], 9, generator), generator), ["a"])

    def dit_step(step: int) -> Batch:
        generator = step_generator(0, step)
        indices = batch_indices(5, 4, 0, step)
        batch = dit_batch(latents[0], latents[1], latents[1][0], indices, generator)
        return Batch((*batch, generator, step, 0), [str(i) for i in indices])

    return make


def test_a_training_that_was_killed_ends_with_the_same_bits(training, tmp_path):
    objective, batch_for_step = training()
    whole = TrainState.start(objective, OPTIM)
    train(whole, OPTIM, batch_for_step)
    expected = {name: weight.clone() for name, weight in objective.state_dict().items()}
    shadow = {name: weight.clone() for name, weight in whole.ema.shadow.items()}

    class Killed(BaseException):
        pass

    def until_killed(step: int) -> Batch:
        if step == 3:
            raise Killed
        return batch_for_step(step)

    checkpoint = tmp_path / "state.pt"
    often = OptimConfig.model_validate(OPTIM.model_dump() | {"checkpoint_every": 2})
    objective, _ = training()
    with pytest.raises(Killed):
        train(TrainState.start(objective, OPTIM), often, until_killed, checkpoint=checkpoint)

    objective, _ = training()
    resumed = TrainState.start(objective, OPTIM)
    assert resumed.load(checkpoint)
    assert resumed.step == 2
    curve = train(resumed, OPTIM, batch_for_step)
    assert [row["step"] for row in curve] == [1, 2, 3, 4]
    for name, weight in objective.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    for name, weight in resumed.ema.shadow.items():
        assert torch.equal(weight, shadow[name]), name


def test_a_few_steps_lower_the_loss(training):
    objective, batch_for_step = training()
    config = OptimConfig(num_steps=30, lr=5e-3, warmup_steps=2, log_every=1, ema_decay=0)
    curve = train(TrainState.start(objective, config), config, lambda step: batch_for_step(step % 2))
    losses = [row["loss"] for row in curve]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_validation_sees_the_averaged_weights_and_is_logged_at_its_steps(training):
    objective, batch_for_step = training()
    state, rows = TrainState.start(objective, OPTIM), []
    name = next(iter(state.ema.shadow))

    def validate() -> dict[str, float]:
        shown = dict(objective.named_parameters())[name]
        return {"val_same": float(not torch.equal(shown, state.ema.shadow[name])) if state.step else 1.0}

    config = OptimConfig.model_validate(OPTIM.model_dump() | {"log_every": 3, "val_every": 2})
    train(state, config, batch_for_step, validate=validate, on_log=rows.append)
    assert [row["step"] for row in rows] == [0, 2, 3, 4]
    assert [row["step"] for row in rows if "val_same" in row] == [0, 2, 4]
    assert all(row.get("val_same", 1) == 1 for row in rows)


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(training):
    objective, batch_for_step = training()

    def poisoned(step: int) -> Batch:
        batch = batch_for_step(step)
        return Batch((batch.args[0] * (math.nan if step == 2 else 1), *batch.args[1:]), ["clip-7", "clip-9"])

    state = TrainState.start(objective, OPTIM)
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 3.*clip-7, clip-9"):
        train(state, OPTIM, poisoned)
    assert state.step == 2
    assert all(weight.isfinite().all() for weight in objective.parameters())


def test_a_missing_checkpoint_changes_nothing(training, tmp_path):
    objective, _ = training()
    assert not TrainState.start(objective, OPTIM).load(tmp_path / "none.pt")


def test_warmup_must_end_before_training_does():
    with pytest.raises(ValueError, match="warmup_steps 5 must be less than num_steps 5"):
        OptimConfig(num_steps=5, warmup_steps=5)


def test_stacked_rows_reach_the_dit_whatever_their_length(dit, latents):
    clips, texts = latents
    short = stack_features(texts[:1])
    padded = stack_features([texts[0], max(texts, key=lambda row: len(row[0]))])
    columns = [[torch.stack(clips[:1])]]
    alone = dit(columns, torch.tensor([500.0]), short)[0]
    both = dit([[torch.stack(clips[:1] * 2)]], torch.tensor([500.0, 500.0]), padded)[0]
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)
