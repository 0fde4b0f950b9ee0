"""Reference cases and their weights."""

import torch

from pyramid_model.parity.case import recipe_weights


def test_weights_that_a_case_leaves_out_are_drawn_in_sorted_order():
    weights = recipe_weights({"b.weight": (4,), "a.weight": (3, 2)}, seed=5)
    generator = torch.Generator().manual_seed(5)
    torch.testing.assert_close(weights["a.weight"], torch.randn(3, 2, generator=generator) / 2**0.5)
    torch.testing.assert_close(weights["b.weight"], 1 + 0.1 * torch.randn(4, generator=generator))
