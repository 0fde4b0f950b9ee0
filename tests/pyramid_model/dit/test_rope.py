"""The rotary embedding."""

import torch

from pyramid_model.dit.rope import rotate, rotation_table


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_rotation_keeps_lengths_and_depends_on_the_difference_of_positions():
    q, k = torch.randn(2, 1, 1, 1, 12)

    def score(q_at, k_at):
        tables = [rotation_table(torch.tensor([at], dtype=torch.float64), (4, 4, 4)) for at in (q_at, k_at)]
        turned = [rotate(x, table) for x, table in zip((q, k), tables, strict=True)]
        close(turned[0].norm(), q.norm())
        return (turned[0] * turned[1]).sum()

    close(score((1.0, 2.0, 3.0), (0.0, 5.0, 1.0)), score((3.0, 3.0, 4.0), (2.0, 6.0, 2.0)))
