"""The training loop on tiny models: it can be interrupted, and its result depends on no chance. About 20 s."""

import math

import numpy as np
import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.train.batches import dit_batch, step_generator, vae_batch
from pyramid_model.train.checkpoints import Checkpoints
from pyramid_model.train.config import DiTLossConfig, OptimConfig, VAELossConfig
from pyramid_model.train.dit_loss import DiTObjective
from pyramid_model.train.guards import TrainingDiverged
from pyramid_model.train.loop import Batch, TrainState, learning_rate, make_optimizers, train
from pyramid_model.train.vae_loss import VAEObjective

OPTIM = OptimConfig(num_steps=4, batch_size=3, lr=1e-2, warmup_steps=1, log_every=1, ema_decay=0.5)


PYRAMID = PyramidConfig(num_stages=2)


def test_learning_rate_rises_then_falls_to_its_floor():
    config = OptimConfig(num_steps=101, lr=1.0, warmup_steps=10, min_lr_ratio=0.1)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[10], rates[55], rates[100]) == pytest.approx((1.0, 0.55, 0.1))


def test_biases_and_norms_do_not_decay(tiny_vae):
    (adamw,) = make_optimizers(tiny_vae, OPTIM)
    decaying, rest = adamw.param_groups
    assert all(weight.ndim > 1 for weight in decaying["params"])
    assert decaying["weight_decay"] > 0 == rest["weight_decay"]
    assert len(decaying["params"]) + len(rest["params"]) == len(list(tiny_vae.parameters()))


def test_the_rate_stays_at_its_peak_until_the_decay_begins():
    config = OptimConfig(num_steps=100, lr=1.0, warmup_steps=10, min_lr_ratio=0, decay_share=0.2)
    rates = [learning_rate(config, step) for step in range(100)]
    assert set(rates[10:81]) == {1.0}
    assert rates[81:] == sorted(rates[81:], reverse=True)
    assert rates[99] == pytest.approx(0)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_other_weights(dit):
    adamw, muon = make_optimizers(dit, OptimConfig(name="muon", lr=1e-2, warmup_steps=0, weight_decay=0))
    names = {id(weight): name for name, weight in dit.named_parameters()}
    groups = [[names[id(w)] for group in o.param_groups for w in group["params"]] for o in (adamw, muon)]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    assert all("blocks" in name and "modulation" not in name and "norm" not in name for name in groups[1])
    assert {"patch_out.weight", "text_in.weight"} <= set(groups[0])
    matrix = muon.param_groups[0]["params"][0]
    before = matrix.detach().clone()
    matrix.grad = torch.randn_like(matrix)
    muon.step()
    singular = torch.linalg.svdvals(matrix.detach() - before)
    assert singular.max() < 3 * singular.median()  # the update is nearly orthogonal, that of AdamW is not


@pytest.fixture(params=["vae", "dit", "mmdit"])
def training(request, tiny_vae, tiny_dit, tiny_mmdit, clips, latents):
    """`training()`: (objective, batches_for_step) of each model, the same at every call."""
    models = {"vae": tiny_vae, "dit": tiny_dit, "mmdit": tiny_mmdit}
    weights = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in models.items()}

    def make():
        model = models[request.param]
        model.load_state_dict(weights[request.param])
        if request.param == "vae":
            return VAEObjective(model, VAELossConfig()), vae_step
        return DiTObjective(model, PYRAMID, DiTLossConfig()), dit_step

    def vae_step(step: int) -> list[Batch]:
        generator = step_generator(0, step)
        return [Batch((vae_batch(clips, [step % 2], 9, generator), generator), ["a"])]

    def dit_step(step: int) -> list[Batch]:
        generator = step_generator(0, step)
        indices = torch.randint(5, (4,), generator=step_generator(1, step)).tolist()
        batch = dit_batch(latents[0], latents[1], latents[1][0], indices, generator)
        return [Batch((*batch, generator, step, 0), [str(i) for i in indices])]

    return make


def test_a_training_that_was_killed_ends_with_the_same_bits(training, tmp_path):
    objective, batches_for_step = training()
    whole = TrainState.start(objective, OPTIM)
    train(whole, OPTIM, batches_for_step)
    expected = {name: weight.clone() for name, weight in objective.state_dict().items()}
    shadow = {name: weight.clone() for name, weight in whole.ema.shadow.items()}

    class Killed(BaseException):
        pass

    def until_killed(step: int) -> list[Batch]:
        if step == 3:
            raise Killed
        return batches_for_step(step)

    often = OptimConfig.model_validate(OPTIM.model_dump() | {"checkpoint_every": 2})
    checkpoints = Checkpoints(str(tmp_path))
    objective, _ = training()
    with pytest.raises(Killed):
        train(TrainState.start(objective, OPTIM), often, until_killed, checkpoints=checkpoints)
    checkpoints.wait()  # here the process lives on, and with it the writing in the background

    objective, _ = training()
    resumed = TrainState.start(objective, OPTIM)
    assert checkpoints.load(resumed)
    assert resumed.step == 2
    curve = train(resumed, OPTIM, batches_for_step)
    assert [row["step"] for row in curve] == [1, 2, 3, 4]
    for name, weight in objective.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    for name, weight in resumed.ema.shadow.items():
        assert torch.equal(weight, shadow[name]), name


def test_a_few_steps_lower_the_loss(training):
    objective, batches_for_step = training()
    config = OptimConfig(num_steps=30, lr=5e-3, warmup_steps=2, log_every=1, ema_decay=0)
    curve = train(TrainState.start(objective, config), config, lambda step: batches_for_step(step % 2))
    losses = [row["loss"] for row in curve]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_validation_sees_the_averaged_weights_and_is_logged_at_its_steps(training):
    objective, batches_for_step = training()
    state, rows = TrainState.start(objective, OPTIM), []
    name = next(iter(state.ema.shadow))

    def validate() -> dict[str, float]:
        shown = dict(objective.named_parameters())[name]
        return {"val_same": float(not torch.equal(shown, state.ema.shadow[name])) if state.step else 1.0}

    config = OptimConfig.model_validate(OPTIM.model_dump() | {"log_every": 3, "val_every": 2})
    train(state, config, batches_for_step, validate=validate, on_log=rows.append)
    assert [row["step"] for row in rows] == [0, 2, 3, 4]
    assert [row["step"] for row in rows if "val_same" in row] == [0, 2, 4]
    assert all(row.get("val_same", 1) == 1 for row in rows)


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(training):
    objective, batches_for_step = training()

    def poisoned(step: int) -> list[Batch]:
        (batch,) = batches_for_step(step)
        return [Batch((batch.args[0] * (math.nan if step == 2 else 1), *batch.args[1:]), ["clip-7", "clip-9"])]

    state = TrainState.start(objective, OPTIM)
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 3.*clip-7, clip-9"):
        train(state, OPTIM, poisoned)
    assert state.step == 2
    assert all(weight.isfinite().all() for weight in objective.parameters())


def test_a_step_without_finite_numbers_is_skipped_within_the_budget(training):
    objective, batches_for_step = training()

    def poisoned(step: int) -> list[Batch]:
        (batch,) = batches_for_step(step)
        return [Batch((batch.args[0] * (math.nan if step in (1, 3) else 1), *batch.args[1:]), [f"clip-{step}"])]

    budget = OptimConfig.model_validate(OPTIM.model_dump() | {"max_skips": 1})
    state = TrainState.start(objective, budget)
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 4;.* 1 steps were skipped before .*clip-3"):
        train(state, budget, poisoned)
    assert state.skipped == [{"step": 2, "reason": "loss is nan", "ids": ["clip-1"]}]
    assert [row.get("skipped") for row in state.curve] == [None, 1, None]
    assert all(weight.isfinite().all() for weight in objective.parameters())
    assert (state.step, state.ema.num_updates) == (3, 2)


def test_a_training_that_continues_another_counts_its_steps_on_and_has_its_own_settings(training, tmp_path):
    objective, batches_for_step = training()
    checkpoints = Checkpoints(str(tmp_path))
    train(TrainState.start(objective, OPTIM), OPTIM, batches_for_step, checkpoints=checkpoints)

    other = OptimConfig.model_validate(OPTIM.model_dump() | {"num_steps": 2, "lr": 1e-3, "betas": (0.8, 0.9)})
    objective, _ = training()
    state = TrainState.start(objective, other)
    assert checkpoints.load(state)
    before = {name: weight.clone() for name, weight in objective.state_dict().items()}
    state.begin(other, {"val_loss": 9.0})
    assert all(torch.equal(weight, before[name]) for name, weight in objective.state_dict().items())
    asked = []
    curve = train(
        state, other, lambda step: asked.append(step) or batches_for_step(step), validate=lambda: {"val_loss": 1.0}
    )
    assert asked == [4, 5]
    assert [row["step"] for row in curve] == [4, 5, 6]
    assert [row["lr"] for row in curve[1:]] == [learning_rate(other, 0), learning_rate(other, 1)]
    assert (state.untrained, state.best) == ({"val_loss": 9.0}, (4, 1.0))
    assert {group["betas"] for group in state.param_groups()} == {(0.8, 0.9)}
    assert [group["weight_decay"] for group in state.param_groups()] == [other.weight_decay, 0]


def test_a_training_that_only_makes_its_model_worse_ends_with_the_model_from_before_it(training, tmp_path, caplog):
    objective, batches_for_step = training()
    before = {name: weight.clone() for name, weight in objective.named_parameters()}
    state, checkpoints, judged = TrainState.start(objective, OPTIM), Checkpoints(str(tmp_path)), iter((1.0, 2.0))
    train(state, OPTIM, batches_for_step, validate=lambda: {"val_loss": next(judged)}, checkpoints=checkpoints)
    assert "the best validation is that before the first step" in caplog.text
    assert checkpoints.load_best(state) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in state.model_weights().items() if name in before)
    resumed = TrainState.start(training()[0], OPTIM)
    assert checkpoints.load(resumed, step=0)
    curve = train(resumed, OPTIM, batches_for_step, validate=lambda: {"val_loss": 0.5})
    assert [row["step"] for row in curve] == [0, 1, 2, 3, 4]  # killed before the first step, it is not judged again


def test_a_missing_checkpoint_changes_nothing(training, tmp_path):
    objective, _ = training()
    assert not Checkpoints(str(tmp_path / "none")).load(TrainState.start(objective, OPTIM))
