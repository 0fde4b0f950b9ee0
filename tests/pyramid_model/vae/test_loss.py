"""The published loss of the VAE: identities that need no pretrained weights. Runs in about 5 s."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pyramid_model.config import VAEGANConfig
from pyramid_model.vae.discriminator import PatchDiscriminator
from pyramid_model.vae.loss import PerceptualDistance, discriminator_loss, restoration_loss
from pyramid_model.vae.posterior import Posterior
from pyramid_model.weights.released_names import PERCEPTUAL_NAMES
from pyramid_model.weights.weights import load_perceptual, to_released

CONFIG = VAEGANConfig(adversarial_start=5, adversarial_weight=1.0, kl_weight=0.0)


@pytest.fixture(scope="module")
def judges():
    torch.manual_seed(0)
    perceptual = PerceptualDistance().eval()
    for layer in perceptual.weights:
        layer.weight.abs_()  # published weights are not negative
    return perceptual, PatchDiscriminator(num_layers=2, channels=8).eval()


@pytest.fixture
def clip():
    """frames, features before the last layer, that layer, and what it restores"""
    torch.manual_seed(1)
    frames, features = torch.rand(1, 3, 2, 32, 32) * 2 - 1, torch.randn(1, 4, 2, 32, 32)
    last_layer = torch.randn(3, 4, 1, 1, 1, requires_grad=True)
    return frames, last_layer, F.conv3d(features, last_layer)


def posterior_at(mean: float) -> Posterior:
    return Posterior(torch.full((1, 2, 1, 4, 4), mean), torch.zeros(1, 2, 1, 4, 4))


def test_a_frame_is_at_distance_zero_from_itself_and_nearer_to_a_mild_change(judges):
    frames = torch.rand(2, 3, 32, 32) * 2 - 1
    distance = judges[0]
    assert distance(frames, frames).flatten().tolist() == [0, 0]
    mild, strong = (distance(frames, frames + s * torch.randn_like(frames)) for s in (0.02, 0.5))
    assert (mild < strong).all()


def test_the_adversary_joins_at_its_step_and_pulls_as_hard_as_the_reconstruction(judges, clip):
    frames, last_layer, restored = clip
    before, parts = restoration_loss(frames, restored, posterior_at(0.0), last_layer, *judges, CONFIG, step=4)
    assert "adversarial" not in parts
    after, parts = restoration_loss(frames, restored, posterior_at(0.0), last_layer, *judges, CONFIG, step=5)
    (plain,) = torch.autograd.grad(before, last_layer, retain_graph=True)
    (joined,) = torch.autograd.grad(after, last_layer)
    torch.testing.assert_close((joined - plain).norm(), plain.norm(), rtol=0.02, atol=0)
    torch.testing.assert_close(after - before, parts["adversarial_weight"] * parts["adversarial"], rtol=1e-4, atol=1e-4)


def test_the_divergence_counts_by_its_weight(judges, clip):
    frames, last_layer, restored = clip
    config = CONFIG.model_copy(update={"kl_weight": 0.5})
    losses = [
        restoration_loss(frames, restored, posterior_at(mean), last_layer, *judges, config, step=0)[0]
        for mean in (0.0, 2.0)
    ]
    torch.testing.assert_close(losses[1] - losses[0], torch.tensor(0.5 * 16 * 2.0))  # half the squares of 16 values


def test_the_discriminator_learns_only_once_the_adversary_has_joined_and_not_through_the_vae(judges, clip):
    frames, last_layer, restored = clip
    assert discriminator_loss(frames, restored, judges[1], CONFIG, step=4) == 0
    loss = discriminator_loss(frames, restored, judges[1], CONFIG, step=5)
    assert torch.autograd.grad(loss, last_layer, allow_unused=True) == (None,)


def test_the_metric_is_read_from_the_two_published_files(judges, tmp_path):
    tensors = to_released(judges[0], PERCEPTUAL_NAMES)
    vgg = {name: value for name, value in tensors.items() if name.startswith("features.")}
    lpips = {name: value for name, value in tensors.items() if name not in vgg}
    assert sorted(lpips) == [f"lin{i}.model.1.weight" for i in range(5)]
    torch.save(vgg | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    save_file(lpips, tmp_path / "vgg.safetensors")
    loaded = load_perceptual([tmp_path / "vgg16.pth", tmp_path / "vgg.safetensors"])
    x, y = torch.rand(2, 1, 3, 32, 32)
    assert torch.equal(loaded(x, y), judges[0](x, y))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_perceptual([tmp_path / "nowhere.pth", tmp_path / "vgg.safetensors"])
    with pytest.raises(ValueError, match=r"missing: features\.0\.weight"):
        load_perceptual([tmp_path / "vgg.safetensors", tmp_path / "vgg.safetensors"])
