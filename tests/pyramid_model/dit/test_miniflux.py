"""What miniFLUX has and the other transformer has not."""

import torch

from pyramid_model.dit.miniflux import SingleBlock
from pyramid_model.dit.packing import make_packing


def test_with_a_gate_of_zero_a_single_block_changes_no_token(tiny_dit):
    block = SingleBlock(tiny_dit.config)
    torch.nn.init.zeros_(block.modulation.weight)
    torch.nn.init.zeros_(block.modulation.bias)
    packing = make_packing((((1, 8, 8),),), (3,), tiny_dit.rope_axes, True, False, torch.device("cpu"))
    tokens = torch.randn(1, 3 + 16, 16)
    assert torch.equal(block(tokens, torch.randn(1, 1, 16), packing), tokens)


@torch.no_grad()
def test_tokens_do_not_know_their_position_before_the_blocks(tiny_dit):
    """Positions are in the rotary embedding alone: equal patches of any clip give equal tokens."""
    tokens = tiny_dit.embed([[torch.ones(1, 4, 2, 4, 4), torch.ones(1, 4, 1, 8, 8)]])
    assert tokens.shape == (1, 2 * 4 + 16, 16)
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))
