"""Blocks of the transformers."""

import torch

from pyramid_model.dit.blocks import FLOAT16_MAX, DoubleBlock
from pyramid_model.dit.packing import make_packing

COLUMNS = (((1, 4, 4), (1, 8, 8)),)


def packing_of(dit):
    return make_packing(COLUMNS, (3,), dit.rope_axes, True, False, torch.device("cpu"))


def test_with_gates_of_zero_a_double_block_changes_no_token(tiny_dit):
    block = DoubleBlock(tiny_dit.config, 1e-6)
    for stream in (block.image, block.text):
        torch.nn.init.zeros_(stream.modulation.weight)
        torch.nn.init.zeros_(stream.modulation.bias)
    image, text = torch.randn(1, 4 + 16, 16), torch.randn(1, 3, 16)
    after_image, after_text = block(image, text, torch.randn(1, 1, 16), packing_of(tiny_dit))
    assert torch.equal(after_image, image)
    assert torch.equal(after_text, text)


@torch.no_grad()
def test_text_stays_finite_in_float16(tiny_dit):
    block = tiny_dit.double_blocks[0].half()
    image, text = torch.randn(1, 4 + 16, 16).half(), torch.full((1, 3, 16), float(FLOAT16_MAX)).half()
    text[..., ::2] *= -1
    block.text.mlp.fc2.bias.fill_(FLOAT16_MAX)
    _, after_text = block(image, text, torch.randn(1, 1, 16).half(), packing_of(tiny_dit))
    assert after_text.abs().max() <= FLOAT16_MAX
