"""The causal convolution."""

import pytest
import torch
from torch.nn import functional as F

from pyramid_model.vae.conv import causal_conv3d


@pytest.mark.parametrize(("stride", "num_zeros"), [((1, 1, 1), 2), ((2, 1, 1), 2), ((1, 2, 2), 1), ((2, 1, 1), 0)])
def test_sum_of_2d_convolutions_is_the_3d_one_with_zeros_before(stride, num_zeros):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((2, 3, 5, 6, 8), (4, 3, 3, 3, 3), (4,)))
    ours = [t.double().requires_grad_() for t in (x, weight, bias)]
    theirs = [t.double().requires_grad_() for t in (x, weight, bias)]
    out = causal_conv3d(*ours, stride, num_zeros)
    expected = F.conv3d(F.pad(theirs[0], (1, 1, 1, 1, num_zeros, 0)), *theirs[1:], stride)
    torch.testing.assert_close(out, expected)
    up = torch.randn(out.shape, generator=generator).double()
    for actual, wanted in zip(
        torch.autograd.grad(out, ours, up), torch.autograd.grad(expected, theirs, up), strict=True
    ):
        torch.testing.assert_close(actual, wanted)
