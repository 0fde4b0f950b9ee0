"""Shares of tokens that ranks exchange. The collectives themselves are tested with the models that use them."""

from itertools import pairwise

import pytest

from pyramid_model.parallel.exchange import share_bounds


@pytest.mark.parametrize(("total", "size"), [(12, 4), (13, 4), (3, 4), (0, 2)])
def test_shares_cover_everything_and_differ_by_at_most_one(total, size):
    bounds = share_bounds(total, size)
    shares = [stop - start for start, stop in pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(shares)) == (0, total, size)
    assert max(shares) - min(shares) <= 1
