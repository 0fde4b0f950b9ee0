"""Blocks of the causal video VAE."""

import torch

from pyramid_model.vae.blocks import FrameAttention, ResnetBlock, SpaceUpsample, TimeUpsample
from pyramid_model.vae.conv import Chunk


def test_a_residual_block_without_its_second_convolution_is_its_shortcut():
    block = ResnetBlock(4, 4, norm_groups=2)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    x = torch.randn(1, 4, 3, 6, 5)
    assert torch.equal(block(x, Chunk()), x)


def test_attention_sees_one_frame_only():
    attention, x = FrameAttention(4, norm_groups=2), torch.randn(1, 4, 3, 4, 4)
    changed = x.clone()
    changed[:, :, 1] += 1
    difference = (attention(changed) - attention(x)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[1] > 0
    assert difference[[0, 2]].tolist() == [0, 0]


def test_upsampling_doubles_space_and_every_frame_but_the_first_of_a_clip():
    x = torch.randn(1, 4, 3, 4, 6)
    assert SpaceUpsample(4)(x, Chunk()).shape == (1, 4, 3, 8, 12)
    assert TimeUpsample(4)(x, Chunk()).shape == (1, 4, 5, 4, 6)
    assert TimeUpsample(4)(x, Chunk(starts_clip=False)).shape == (1, 4, 6, 4, 6)
