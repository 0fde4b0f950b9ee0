"""The straightforward sampling that ours is compared with computes the same. Runs in about 10 s."""

import importlib
from pathlib import Path

import pytest
import torch

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.sampler import Sampling, sample_video
from pyramid_model.text import TextFeatures

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {"latent_channels": 4, "num_heads": 2, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}


@pytest.fixture
def baseline(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # where a script that is run from there finds it
    return importlib.import_module("baseline")


@pytest.fixture(params=["miniflux", "mmdit"])
def dit(request):
    torch.manual_seed(0)
    if request.param == "miniflux":
        config = MiniFluxConfig(**SIZES, num_double_blocks=2, num_single_blocks=2, rope_axes=(2, 2, 4))
        model = MiniFlux(config)
    else:
        model = MMDiT(MMDiTConfig(**SIZES, num_blocks=3, position_grid=8, position_base=4))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5
    return model.eval()


def prompts(*lengths):
    """A row for each number of tokens, padded to the longest."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    embeds = torch.randn(len(lengths), max(lengths), 6, generator=generator)
    return TextFeatures(embeds, mask, torch.randn(len(lengths), 5, generator=generator))


@torch.no_grad()
@pytest.mark.parametrize("dense_mask", [True, False])
@pytest.mark.parametrize("wide_modulation", [True, False])
def test_a_straightforward_call_equals_ours(baseline, dit, dense_mask, wide_modulation):
    plain = baseline.Straightforward(dit, baseline.Habits(dense_mask, wide_modulation=wide_modulation))
    for sizes in ([(1, 8, 16)], [(2, 2, 4), (1, 4, 8), (2, 8, 16)]):
        column = [torch.randn(2, 4, *size) for size in sizes]
        for text in (prompts(3, 3), prompts(5, 2), baseline.padded(prompts(5, 2))):
            (ours,), (same,) = (f([column], torch.tensor([900.0, 30.0]), text) for f in (dit, plain))
            torch.testing.assert_close(same, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames_per_unit", [1, 2])
def test_a_straightforward_clip_equals_ours_from_the_same_noise(baseline, dit, frames_per_unit):
    plain = baseline.Straightforward(dit, baseline.Habits())
    guidance = [3.0, 1.0, 2.0, 1.5, 2.0][: 1 + 4 // frames_per_unit]
    pyramid = PyramidConfig(frames_per_unit=frames_per_unit)
    sampling = Sampling(pyramid, (5, 8, 16), (3, 2, 1), (2, 2, 2), guidance)
    ours, same = (
        make(model, prompts(5), prompts(2), sampling, noise)
        for make, model, noise in (
            (sample_video, dit, Noise(torch.Generator().manual_seed(1))),
            (baseline.sample, plain, Noise(torch.Generator().manual_seed(1))),
        )
    )
    torch.testing.assert_close(same, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("gamma", [1 / 3, 0.2])
def test_noise_drawn_block_by_block_has_the_covariance_of_ours(baseline, gamma):
    torch.manual_seed(0)
    drawn = baseline.LoopNoise(torch.Generator()).block(1, 2, 1, 80, 80, gamma=gamma)
    blocks = drawn.unfold(3, 2, 2).unfold(4, 2, 2).reshape(-1, 4)
    expected = (1 + gamma) * torch.eye(4) - gamma * torch.ones(4, 4)
    torch.testing.assert_close(blocks.T.cov(), expected, atol=0.08, rtol=0)
