"""The division of ranks among the ways of sharing."""

import pytest

from pyramid_model.parallel.layout import Layout, best_layout


@pytest.mark.parametrize(
    ("ranks", "heads", "expected"),
    [
        (1, 30, (1, 1, 1)),
        (2, 30, (2, 1, 1)),
        (3, 30, (1, 3, 1)),
        (4, 30, (2, 2, 1)),
        (8, 30, (2, 2, 2)),
        (8, 24, (2, 4, 1)),
    ],
)
def test_guidance_is_shared_first_then_heads_and_rings_take_the_rest(ranks, heads, expected):
    assert best_layout(ranks, heads) == Layout(*expected)


def test_without_guidance_all_ranks_share_the_tokens():
    assert best_layout(4, 30, guided=False) == Layout(1, 2, 2)
