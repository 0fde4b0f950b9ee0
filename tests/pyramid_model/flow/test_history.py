"""History clips of the temporal pyramid."""

import pytest
import torch

from pyramid_model.flow.history import history_clips, latent_pyramid


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("frames_per_unit", [1, 2])
@pytest.mark.parametrize("num_units", [1, 2, 3, 6])
def test_history_holds_every_frame_once_and_gets_coarser_with_age(stage, frames_per_unit, num_units):
    num_frames = 1 + (num_units - 1) * frames_per_unit
    marked = torch.arange(num_frames).float()[None, None, :, None, None].expand(1, 1, num_frames, 16, 16)
    clips = history_clips(latent_pyramid(marked, 3), stage, num_units, frames_per_unit)
    assert torch.cat([clip[0, 0, :, 0, 0] for clip in clips]).tolist() == list(range(num_frames))
    sides = [clip.shape[-1] for clip in clips]
    assert sides == sorted(sides)
    assert sides[-1] == 4 * 2**stage


def test_three_stages_keep_the_last_unit_sharp_the_one_before_at_half_and_the_rest_at_a_quarter():
    clips = history_clips(latent_pyramid(torch.zeros(1, 1, 5, 16, 16), 3), stage=2, num_units=5, frames_per_unit=1)
    assert [tuple(clip.shape[2:]) for clip in clips] == [(3, 4, 4), (1, 8, 8), (1, 16, 16)]
