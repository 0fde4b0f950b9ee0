"""Facts about history that is remembered instead of computed again. Runs in about 10 s."""

import pytest
import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.dit.kv_cache import KVCache
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.flow.sampler import Sampling, sample_units, sample_video

FRAMES = 5


@pytest.fixture(params=["shared", "clean"])
def timed_dit(request, dit):
    """Either DiT, with either history time."""
    config = type(dit.config).model_validate(dit.config.model_dump() | {"history_time": request.param})
    timed = type(dit)(config).eval()
    timed.load_state_dict(dit.state_dict())
    return timed


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


def arguments(text_rows, frames_per_unit=1, guidance=(3.0,) * FRAMES, samples=2):
    noise = Noise([torch.Generator().manual_seed(seed) for seed in range(samples)])
    frames = 1 + (FRAMES - 1) * frames_per_unit
    text, negative = text_rows(2 * samples), text_rows(2 * samples)
    text, negative = (type(text)(t.embeds[:samples], t.mask[:samples], t.pooled[:samples]) for t in (text, negative))
    pyramid = PyramidConfig(frames_per_unit=frames_per_unit)
    return (text, negative, Sampling(pyramid, (frames, 8, 8), (1, 1, 1), (3, 2, 2), guidance), noise)


def sampled(dit, reuse, *args, **kwargs):
    """A clip, and the values that its image tokens had, all calls taken together."""
    tokens = []
    handle = dit.patch_in.register_forward_hook(lambda module, inputs, output: tokens.append(output.numel()))
    clip = sample_video(dit, *arguments(*args, **kwargs), reuse=reuse)
    handle.remove()
    return clip, sum(tokens)


@pytest.mark.parametrize("frames_per_unit", [1, 2])
def test_reuse_gives_the_same_clip_for_less(timed_dit, text_rows, frames_per_unit):
    plain, all_values = sampled(timed_dit, NoReuse(timed_dit), text_rows, frames_per_unit)
    reused, values = sampled(timed_dit, HistoryReuse(timed_dit), text_rows, frames_per_unit)
    close(reused, plain)
    assert values < (0.75 if timed_dit.config.clean_history else 0.96) * all_values


class NoReuse(HistoryReuse):
    """Every call computes everything."""

    def velocity(self, clips, timestep, text, stage, step, num_steps):
        return self.dit([clips], timestep, text)[0]


@pytest.mark.parametrize("max_bytes", [0, 30_000])
def test_what_does_not_fit_is_computed_again(timed_dit, text_rows, max_bytes):
    reuse = HistoryReuse(timed_dit, max_bytes=max_bytes)
    units, held = [], []
    for unit in sample_units(timed_dit, *arguments(text_rows), reuse=reuse):
        units.append(unit)
        held.append(sum(kv_cache.num_bytes for kv_cache in reuse.kv_caches.values()))
    close(torch.cat(units, dim=2), sampled(timed_dit, NoReuse(timed_dit), text_rows)[0])
    assert max(held) <= max_bytes
    assert bool(max(held)) == bool(max_bytes)


@torch.no_grad()
def test_with_clean_history_time_the_timestep_reaches_the_noisy_frame_alone(dit, text_rows):
    config = type(dit.config).model_validate(dit.config.model_dump() | {"history_time": "clean"})
    clean = type(dit)(config).eval()
    clean.load_state_dict(dit.state_dict())
    history, noisy, text = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 4, 1, 8, 8), text_rows(1)
    kv_caches = []
    for timestep in (900.0, 100.0):
        kv_caches.append(KVCache(len(clean.blocks)))
        clean([[history, noisy]], torch.tensor([timestep]), text, kv_caches[-1], num_cached=2)
    for block, other in zip(*(kv_cache.blocks for kv_cache in kv_caches), strict=True):
        assert torch.equal(block.keys, other.keys)
    at_0 = torch.tensor([0.0])
    close(clean([[history, noisy]], at_0, text)[0], dit([[history, noisy]], at_0, text)[0])


def test_the_error_of_a_rarer_refresh_is_measured(dit, text_rows):
    exact, _ = sampled(dit, NoReuse(dit), text_rows)
    errors = {}
    for refresh_every in (1, 2):
        reuse = HistoryReuse(dit, refresh_every)
        clip, _ = sampled(dit, reuse, text_rows)
        assert torch.allclose(clip, exact, atol=2e-5) == (refresh_every == 1)
        errors[refresh_every] = reuse.errors
    assert errors[1] == []
    assert len(errors[2]) == 3 * 3  # at each stage after 1, 2 and 4 frames of history
    assert all(0 < error < 1 for error in errors[2])


@torch.no_grad()
def test_between_refreshes_only_the_noisy_frame_is_computed(tiny_dit, text_rows):
    clips, text = [torch.randn(1, 4, 3, 4, 4), torch.randn(1, 4, 1, 8, 8)], text_rows(1)
    reuse, tokens = HistoryReuse(tiny_dit, refresh_every=2), []
    tiny_dit.patch_in.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
    for step in range(5):
        reuse.velocity(clips, torch.tensor([900.0 - step]), text, stage=1, step=step, num_steps=5)
    assert tokens == [3 * 4 + 16, 16] * 2 + [3 * 4 + 16]


def test_clean_history_time_has_no_error_to_measure(timed_dit, text_rows):
    if timed_dit.config.clean_history:
        reuse = HistoryReuse(timed_dit, refresh_every=2)
        close(sampled(timed_dit, reuse, text_rows)[0], sampled(timed_dit, NoReuse(timed_dit), text_rows)[0])
        assert reuse.errors == []


def test_guidance_that_falls_to_1_changes_the_rows_and_nothing_else(dit, text_rows):
    falling = [3.0, 2.0, 1.0, 1.0, 2.0]
    reused = sample_video(dit, *arguments(text_rows, guidance=falling, samples=1))
    close(reused, sample_video(dit, *arguments(text_rows, guidance=falling, samples=1), reuse=NoReuse(dit)))


def test_a_model_that_is_not_causal_has_nothing_to_remember(dit, text_rows):
    config = type(dit.config).model_validate(dit.config.model_dump() | {"causal": False})
    free = type(dit)(config).eval()
    free.load_state_dict(dit.state_dict())
    reuse = HistoryReuse(free)
    close(sampled(free, reuse, text_rows)[0], sampled(free, NoReuse(free), text_rows)[0])
    assert not reuse.kv_caches


def test_refreshing_less_than_every_step_is_refused(tiny_dit):
    with pytest.raises(ValueError, match="refresh_every 0: must be at least 1"):
        HistoryReuse(tiny_dit, refresh_every=0)
