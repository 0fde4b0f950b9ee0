"""Batches of a step, as functions of seed, step and rank."""

import numpy as np
import pytest
import torch

from pyramid_model.text import stack_features
from pyramid_model.train.batches import dit_batch, step_generator, vae_batch
from pyramid_model.vae.pixels import to_uint8


def test_random_numbers_are_functions_of_seed_step_and_batch():
    draws = [
        torch.rand(3, generator=step_generator(*key)).tolist() for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    assert len({tuple(draw) for draw in draws}) == 4


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


def test_dropped_texts_become_the_null_text_at_the_given_rate(latents):
    clips, texts = latents
    null = (torch.zeros(1, 6), torch.full((5,), 9.0))
    _, text = dit_batch(clips, texts, null, [0, 1, 2, 3, 4] * 200, step_generator(0, 0), dropout=0.1)
    dropped = (text.pooled == 9).all(1)
    assert dropped.float().mean() == pytest.approx(0.1, abs=0.03)
    assert (text.mask[dropped].sum(1) == 1).all()


def test_stacked_rows_reach_the_dit_whatever_their_length(dit, latents):
    clips, texts = latents
    short = stack_features(texts[:1])
    padded = stack_features([texts[0], max(texts, key=lambda row: len(row[0]))])
    columns = [[torch.stack(clips[:1])]]
    alone = dit(columns, torch.tensor([500.0]), short)[0]
    both = dit([[torch.stack(clips[:1] * 2)]], torch.tensor([500.0, 500.0]), padded)[0]
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)
