"""The causality probe passes our models, fresh and trained, and refuses models whose frames see later ones."""

import pytest
import torch
from torch.nn import functional as F

from pyramid_model.dit import packing
from pyramid_model.dit.packing import make_packing
from pyramid_model.train.causality import NotCausal, probe_dit, probe_vae


@pytest.fixture(params=["random", "fresh"])
def any_dit(request, dit):
    """Either DiT, with random weights, or as `initialise` leaves it, which predicts zero."""
    if request.param == "fresh":
        dit.initialise()
    return dit


@pytest.fixture
def everything_seen(monkeypatch):
    """Attention without regard to frames, as a fast kernel without a mask computes it."""

    def attend(q, k, v, *_):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).flatten(2)

    monkeypatch.setattr(packing, "frame_attention", attend)
    monkeypatch.setattr(packing, "masked_attention", attend)
    make_packing.cache_clear()
    yield
    make_packing.cache_clear()


def test_our_dits_pass_and_keep_weights_and_random_numbers(any_dit):
    before = {name: value.clone() for name, value in any_dit.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probe_dit(any_dit.train())
    assert torch.equal(torch.rand(3), expected)
    assert any_dit.training
    assert all(torch.equal(value, before[name]) for name, value in any_dit.state_dict().items())


@pytest.mark.usefixtures("everything_seen")
def test_attention_without_a_mask_is_refused(any_dit):
    with pytest.raises(NotCausal, match="the DiT is not causal: a change of the last frame moves an earlier output"):
        probe_dit(any_dit)


@pytest.mark.usefixtures("everything_seen")
def test_a_dit_that_is_meant_to_see_everything_is_not_probed(dit):
    dit.config = dit.config.model_copy(update={"causal": False})
    probe_dit(dit)


def test_our_vae_passes(tiny_vae):
    probe_vae(tiny_vae)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_vae_that_sees_later_frames_is_refused(tiny_vae, half, monkeypatch):
    def blurred(x):
        return (x + x.flip(2)) / 2

    if half == "decoder":
        decode = tiny_vae.decode
        monkeypatch.setattr(tiny_vae, "decode", lambda latents: decode(blurred(latents)))
    else:
        encode = tiny_vae.encode
        monkeypatch.setattr(tiny_vae, "encode", lambda frames: encode(blurred(frames)))
    with pytest.raises(NotCausal, match=f"the {half} of the VAE is not causal"):
        probe_vae(tiny_vae)
