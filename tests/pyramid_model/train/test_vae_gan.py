"""The published VAE training: two sides in one step, and LPIPS."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pyramid_model.config import VAEGANConfig
from pyramid_model.train.batches import step_generator, vae_batch
from pyramid_model.train.checkpoints import Checkpoints
from pyramid_model.train.config import OptimConfig
from pyramid_model.train.loop import Batch, TrainState, train
from pyramid_model.train.vae_gan import VAEGANObjective
from pyramid_model.train.vae_loss import validate_vae
from pyramid_model.vae.loss import PerceptualDistance, discriminator_loss, restoration_loss
from pyramid_model.weights.weights import load_perceptual

GAN = VAEGANConfig(
    perceptual_weight=0,
    adversarial_start=2,
    discriminator_layers=2,
    discriminator_channels=4,
    discriminator_lr_scale=0.5,
)
OPTIM = OptimConfig(num_steps=5, batch_size=1, lr=1e-3, warmup_steps=0, checkpoint_every=1, log_every=1)


@pytest.fixture
def objective(tiny_vae):
    torch.manual_seed(2)
    return VAEGANObjective(tiny_vae.train(), GAN)


@pytest.fixture
def batches(clips):
    def of_step(step):
        generator = step_generator(0, step)
        return [Batch((vae_batch(clips, [0], 9, generator), generator, step), ["clip"])]

    return of_step


def test_one_backward_pass_gives_each_side_the_gradient_of_its_own_loss(objective, batches):
    (batch,) = batches(3)
    frames, generator, _ = batch.args
    before = generator.get_state()
    objective(*batch.args)[0].backward()
    actual = {name: weight.grad.clone() for name, weight in objective.named_parameters()}
    objective.zero_grad()
    generator.set_state(before)
    vae, discriminator = objective.vae, objective.discriminator
    posterior = vae.encode(frames)
    restored = vae.decode(posterior.sample(generator))
    frozen = copy.deepcopy(discriminator).requires_grad_(False)
    loss, _ = restoration_loss(frames, restored, posterior, vae.decoder.conv_out.weight, None, frozen, GAN, 3)
    loss.backward()
    discriminator_loss(frames, restored, discriminator, GAN, 3).backward()
    for name, weight in objective.named_parameters():
        torch.testing.assert_close(actual[name], weight.grad, msg=name)


def test_the_discriminator_rests_before_its_step_and_learns_at_its_own_rate_after_it(objective, batches):
    state, first = TrainState.start(objective, OPTIM), copy.deepcopy(objective.discriminator.state_dict())
    states = []

    def of_step(step):
        states.append(copy.deepcopy(objective.discriminator.state_dict()))
        return batches(step)

    rows = train(state, OPTIM, of_step)
    assert all(torch.equal(states[2][name], first[name]) for name in first)
    assert any(not torch.equal(states[3][name], first[name]) for name in first)
    assert [group["lr"] for group in state.optimizers[-1].param_groups] == [0.5 * rows[-1]["lr"]] * 2
    assert "adversarial" not in rows[1]
    for name in (
        "adversarial",
        "adversarial_weight",
        "reconstruction_grad",
        "discriminator",
        "grad_norm_discriminator",
    ):
        assert np.isfinite(rows[2][name])


def test_a_training_that_was_interrupted_continues_bit_for_bit(objective, batches, tmp_path):
    twin = copy.deepcopy(objective)
    state = TrainState.start(objective, OPTIM)
    train(state, OPTIM, batches, checkpoints=Checkpoints(str(tmp_path / "whole")))

    class Killed(Exception):
        pass

    def dying(step):
        if step == 4:
            raise Killed
        return batches(step)

    with pytest.raises(Killed):
        train(TrainState.start(twin, OPTIM), OPTIM, dying, checkpoints=Checkpoints(str(tmp_path / "half")))
    again = copy.deepcopy(twin)
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    resumed = TrainState.start(again, OPTIM)
    assert Checkpoints(str(tmp_path / "half")).load(resumed)
    assert resumed.step > 2
    train(resumed, OPTIM, batches)
    expected = objective.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_lpips_of_alexnet_orders_distortions_as_people_do(shared_assets, clips):
    perceptual = load_perceptual([shared_assets / "weights" / "lpips_alexnet.npz"], "alexnet")
    frames = torch.from_numpy(np.ascontiguousarray(clips[0][:2])).permute(0, 3, 1, 2).float() / 127.5 - 1
    frames = torch.nn.functional.interpolate(frames, scale_factor=4)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(frames.shape, generator=generator)
    same, mild, strong = (perceptual(frames, frames + s * noise).mean() for s in (0, 0.05, 0.5))
    assert float(same) == 0
    assert 0 < float(mild) < float(strong) < 2


def test_validation_reports_lpips_where_it_is_given(tiny_vae, clips):
    torch.manual_seed(0)
    whole = [np.repeat(np.repeat(clip[:9], 2, 1), 2, 2) for clip in clips]
    figures = validate_vae(tiny_vae, whole, PerceptualDistance("alexnet"))
    assert set(figures) == {"val_psnr", "val_ssim", "val_mse", "val_lpips"}
    assert set(validate_vae(tiny_vae, whole)) == {"val_psnr", "val_ssim", "val_mse"}


def test_an_npz_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="unexpected: a"):
        load_perceptual([tmp_path / "other.npz"], "alexnet")
    np.savez(tmp_path / "code.npz", a=np.array([print], dtype=object))
    with pytest.raises(ValueError, match=r"code\.npz is not an \.npz file of arrays: Object arrays cannot be loaded"):
        load_perceptual([tmp_path / "code.npz"], "alexnet")
    Path(tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz is not an \.npz file"):
        load_perceptual([tmp_path / "text.npz"], "alexnet")
