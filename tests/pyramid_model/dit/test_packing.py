"""The token layout of columns of clips."""

from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pyramid_model.dit.packing import (
    _packing,
    clip_positions,
    frame_ends,
    make_packing,
    patchify,
    unpatchify,
    without_first_frames,
)


def test_the_text_ends_with_the_first_frame():
    assert frame_ends(((2, 4, 4), (1, 8, 8)), num_text=3) == (7, 11, 27)


def test_the_first_frames_of_a_column_are_left_out_across_clips():
    clips = [torch.arange(3.0).view(1, 1, 3, 1, 1), torch.full((1, 1, 1, 2, 2), 3.0)]
    assert [clip.shape[2] for clip in without_first_frames(clips, 2)] == [1, 1]
    assert without_first_frames(clips, 2)[0].item() == 2
    assert [clip.shape[3] for clip in without_first_frames(clips, 3)] == [2]


def column(*sizes, batch=1):
    return [torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("mode", [torch.inference_mode, partial(FakeTensorMode, allow_non_fake_inputs=True)])
def test_a_call_that_keeps_no_gradient_or_no_content_leaves_nothing_behind_for_one_that_does(tiny_dit, text_rows, mode):
    text, timestep = text_rows(1), torch.tensor([400.0])
    assert text.lengths == (4,)  # counted here: where there is no content there is nothing to count
    make_packing.cache_clear()
    _packing.cache_clear()
    with mode():
        tiny_dit([column((1, 4, 4))], timestep, text)
    (velocity,) = tiny_dit([column((1, 4, 4))], timestep, text)
    velocity.sum().backward()
    assert type(velocity) is torch.Tensor


def test_coarse_history_sits_at_the_centres_of_what_it_covers():
    positions = clip_positions(((1, 4, 4), (1, 8, 8)))
    assert positions[:4].tolist() == [[0, 0.5, 0.5], [0, 0.5, 2.5], [0, 2.5, 0.5], [0, 2.5, 2.5]]
    assert positions[4:, 0].unique().tolist() == [1.0]
    assert positions[-1].tolist() == [1, 3, 3]


def test_unpatchify_inverts_patchify():
    clip = torch.randn(2, 3, 2, 4, 6)
    tokens = patchify(clip)
    assert tokens.shape == (2, 12, 12)
    assert torch.equal(unpatchify(tokens, (2, 4, 6)), clip)
