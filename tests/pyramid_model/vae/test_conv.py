"""The causal convolution."""

import pytest
import torch
from torch.nn import functional as F

from pyramid_model.vae.conv import PAIR_CHANNELS, causal_conv3d


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


@pytest.mark.parametrize(
    ("num_frames", "stride", "num_zeros"), [(9, (1, 1, 1), 2), (10, (1, 2, 2), 2), (9, (1, 1, 1), 0)]
)
@pytest.mark.parametrize("needs_x", [True, False])
def test_frames_in_pairs_are_those_of_the_3d_convolution(num_frames, stride, num_zeros, needs_x):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, PAIR_CHANNELS, num_frames, 4, 6), (PAIR_CHANNELS + 1, PAIR_CHANNELS, 3, 3, 3), (PAIR_CHANNELS + 1,)
    ours, theirs = [], []
    for number, shape in enumerate(shapes):
        value = torch.randn(shape, generator=generator).double()
        for side in (ours, theirs):
            side.append(value.clone().requires_grad_(number > 0 or needs_x))
    out = causal_conv3d(*ours, stride, num_zeros)
    expected = F.conv3d(F.pad(theirs[0], (1, 1, 1, 1, num_zeros, 0)), *theirs[1:], stride)
    torch.testing.assert_close(out, expected)
    up = torch.randn(out.shape, generator=generator).double()
    for result in (out, expected):
        result.backward(up)
    for actual, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual.grad, wanted.grad)


def test_frames_in_pairs_do_not_change_with_later_frames_by_a_bit():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, PAIR_CHANNELS, 9, 4, 4, generator=generator)
    weight = torch.randn(PAIR_CHANNELS, PAIR_CHANNELS, 3, 3, 3, generator=generator).requires_grad_()
    out = causal_conv3d(x, weight, weight.new_zeros(PAIR_CHANNELS), (1, 1, 1), 2)
    for frame in range(9):
        changed = x.clone()
        changed[:, :, frame] += 1
        again = causal_conv3d(changed, weight, weight.new_zeros(PAIR_CHANNELS), (1, 1, 1), 2)
        assert torch.equal(again[:, :, :frame], out[:, :, :frame])
        assert not torch.equal(again[:, :, frame], out[:, :, frame])
