"""The position table of MMDiT."""

import pytest
import torch

from pyramid_model.config import MMDiTConfig
from pyramid_model.dit.mmdit import position_table


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def column(*sizes, batch=1):
    return [torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]


@torch.no_grad()
def test_mmdit_gives_history_the_positions_of_what_it_covers_in_the_middle_of_the_table(tiny_mmdit):
    grid = tiny_mmdit.positions.unflatten(1, (8, 8))[0]
    noisy, coarse = column((1, 4, 8), (1, 2, 4))
    fine = tiny_mmdit.clip_positions(noisy, noisy)
    assert torch.equal(fine[0].permute(1, 2, 0), grid[3:5, 2:6])
    covered = fine.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    close(tiny_mmdit.clip_positions(coarse, noisy), covered)


def test_mmdit_positions_differ_by_1_between_neighbours_of_a_table_of_the_base_size():
    config = MMDiTConfig(num_heads=1, head_dim=8, position_grid=6, position_base=6)
    first_w, first_h = position_table(config)[0].unflatten(0, (6, 6))[..., [0, 4]].unbind(-1)  # sines of the positions
    close(first_w, torch.arange(6.0).sin().expand(6, 6))
    close(first_h, first_w.T)


def test_mmdit_refuses_a_picture_larger_than_its_table(tiny_mmdit, text_rows):
    with pytest.raises(ValueError, match=r"18x4 latents .* at most 16 latents"):
        tiny_mmdit([column((1, 18, 4))], torch.tensor([400.0]), text_rows(1))
