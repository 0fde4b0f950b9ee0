"""Facts about the miniFLUX transformer and its token layout. Runs in about 4 s."""

import pytest
import torch

from pyramid_model.config import MiniFluxConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.packing import clip_positions, patchify, unpatchify
from pyramid_model.dit.rope import rotate, rotation_table
from pyramid_model.text import TextFeatures


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def column(*sizes, batch=1):
    return [torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]


@torch.no_grad()
def test_columns_of_one_batch_do_not_see_each_other(tiny_dit, text_rows):
    columns = [column((1, 2, 2), (1, 4, 4), batch=2), column((2, 2, 2), (1, 8, 4), batch=2)]
    timestep, text = torch.tensor([900.0, 500.0, 300.0, 10.0]), text_rows(4)
    together = tiny_dit(columns, timestep, text)
    for g in range(2):
        own = TextFeatures(text.embeds[g::2], text.mask[g::2], text.pooled[g::2])
        close(tiny_dit([columns[g]], timestep[g::2], own)[0], together[g])
        assert together[g].shape == columns[g][-1].shape


@torch.no_grad()
def test_padded_text_changes_nothing(tiny_dit, text_rows):
    text, clips = text_rows(1), [column((1, 4, 4), (1, 4, 4))]
    padded = text.concat(TextFeatures(torch.zeros(0, 9, 6), torch.zeros(0, 9, dtype=torch.bool), torch.zeros(0, 5)))
    noise = torch.where(padded.mask[..., None], padded.embeds, torch.full_like(padded.embeds, 100.0))
    timestep = torch.tensor([400.0])
    close(
        tiny_dit(clips, timestep, TextFeatures(noise, padded.mask, text.pooled))[0], tiny_dit(clips, timestep, text)[0]
    )


@torch.no_grad()
def test_the_first_frame_of_a_clip_does_not_see_the_second(tiny_dit, text_rows):
    clip = column((2, 4, 4))[0]
    changed = torch.cat([clip[:, :, :1], -clip[:, :, 1:]], dim=2)
    timestep, text = torch.tensor([400.0]), text_rows(1)
    a, b = (tiny_dit([[x]], timestep, text)[0] for x in (clip, changed))
    close(a[:, :, 0], b[:, :, 0])
    assert (a[:, :, 1] - b[:, :, 1]).abs().max() > 1e-2


@torch.no_grad()
def test_history_matters(tiny_dit, text_rows):
    clips = column((1, 4, 4), (1, 4, 4))
    timestep, text = torch.tensor([400.0]), text_rows(1)
    with_history, other = (tiny_dit([[past, clips[1]]], timestep, text)[0] for past in (clips[0], -clips[0]))
    assert (with_history - other).abs().max() > 1e-2


@torch.no_grad()
def test_without_causality_one_frame_is_predicted_the_same_and_two_are_not(tiny_dit, text_rows):
    free = MiniFlux(MiniFluxConfig(**{**tiny_dit.config.model_dump(), "causal": False}))
    free.load_state_dict(tiny_dit.state_dict())
    timestep, text = torch.tensor([400.0]), text_rows(1)
    one, two = column((1, 4, 4)), column((2, 4, 4))
    close(free([one], timestep, text)[0], tiny_dit([one], timestep, text)[0])
    assert (free([two], timestep, text)[0] - tiny_dit([two], timestep, text)[0]).abs().max() > 1e-2


def test_a_fresh_model_predicts_zero_and_every_weight_gets_a_gradient_once_it_does_not(tiny_dit, text_rows):
    clips, timestep, text = [column((1, 2, 2), (1, 4, 4))], torch.tensor([400.0]), text_rows(1)
    fresh = MiniFlux(tiny_dit.config)
    assert fresh(clips, timestep, text)[0].abs().max() == 0
    tiny_dit(clips, timestep, text)[0].square().sum().backward()
    # the image tokens are read after the last single block, so nothing is left without use
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in tiny_dit.parameters())


def test_coarse_history_sits_at_the_centres_of_what_it_covers():
    positions = clip_positions(((1, 4, 4), (1, 8, 8)))
    assert positions[:4].tolist() == [[0, 0.5, 0.5], [0, 0.5, 2.5], [0, 2.5, 0.5], [0, 2.5, 2.5]]
    assert positions[4:, 0].unique().tolist() == [1.0]
    assert positions[-1].tolist() == [1, 3, 3]


def test_rotation_keeps_lengths_and_depends_on_the_difference_of_positions():
    q, k = torch.randn(2, 1, 1, 1, 12)

    def score(q_at, k_at):
        tables = [rotation_table(torch.tensor([at], dtype=torch.float64), (4, 4, 4)) for at in (q_at, k_at)]
        turned = [rotate(x, table) for x, table in zip((q, k), tables, strict=True)]
        close(turned[0].norm(), q.norm())
        return (turned[0] * turned[1]).sum()

    close(score((1.0, 2.0, 3.0), (0.0, 5.0, 1.0)), score((3.0, 3.0, 4.0), (2.0, 6.0, 2.0)))


def test_unpatchify_inverts_patchify():
    clip = torch.randn(2, 3, 2, 4, 6)
    tokens = patchify(clip)
    assert tokens.shape == (2, 12, 12)
    assert torch.equal(unpatchify(tokens, (2, 4, 6)), clip)


def test_rope_axes_that_do_not_fill_a_head_are_refused():
    with pytest.raises(ValueError, match="add up to head_dim 64"):
        MiniFluxConfig(rope_axes=(16, 16, 16))
