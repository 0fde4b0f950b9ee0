"""Facts about attention that is causal by frame. Runs in about 3 s."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pyramid_model.dit.attention import MAX_MASKED, by_segment, frame_attention, frame_mask, masked_attention

ENDS = (5, 7, 10)  # three frames, the first together with the text


def qkv(batch=2):
    return torch.randn(3, batch, ENDS[-1], 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def masked(q, k, v, pads):
    """The same by one call with a mask over all pairs of tokens."""
    frame = torch.bucketize(torch.arange(ENDS[-1]), torch.tensor(ENDS), right=True)
    real = torch.arange(ENDS[-1]) >= torch.tensor(pads)[:, None]
    mask = (frame[:, None] >= frame)[None, None] & real[:, None, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return (out.nan_to_num() * real[:, None, :, None]).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("pads", [(0, 0), (3, 3), (0, 3), (2, 0)])
def test_one_call_a_frame_finds_what_a_dense_mask_finds(pads):
    q, k, v = qkv()
    torch.testing.assert_close(frame_attention(q, k, v, ENDS, pads), masked(q, k, v, pads))


@pytest.mark.parametrize("pads", [(0, 0), (0, 3), (2, 4)])
@pytest.mark.parametrize("first", [0, 5, 7])
def test_one_call_with_a_mask_finds_what_one_call_a_frame_finds(pads, first):
    q, k, v = qkv()
    mask = frame_mask(ENDS, pads, first)
    if mask is None:  # one call with the same keys for all
        assert first == 7
        assert pads == (0, 0)
        return
    expected = frame_attention(q[:, first:], k, v, ENDS, pads)
    torch.testing.assert_close(masked_attention(q[:, first:], k, v, mask, pads), expected)


def test_a_mask_is_made_only_for_short_sequences_that_need_several_calls():
    assert frame_mask((MAX_MASKED // 2, MAX_MASKED), (0,), 0) is not None
    assert frame_mask((MAX_MASKED // 2, MAX_MASKED + 1), (0,), 0) is None
    assert frame_mask((10,), (3, 3), 0) is None


@pytest.mark.parametrize("num_known", [5, 7])
def test_the_last_queries_alone_find_what_they_find_together_with_the_others(num_known):
    q, k, v = qkv()
    whole = frame_attention(q, k, v, ENDS, (0, 2))
    torch.testing.assert_close(frame_attention(q[:, num_known:], k, v, ENDS, (0, 2)), whole[:, num_known:])


def test_no_more_is_computed_than_what_is_seen():
    q, k, v = qkv(batch=1)
    with FlopCounterMode(display=False) as counter:
        frame_attention(q, k, v, ENDS, (0,))
    seen = sum((end - start) * end for start, end in zip((0, *ENDS), ENDS, strict=False))
    assert counter.get_total_flops() == 2 * 2 * seen * 2 * 8  # scores and sums, 2 heads of 8 channels


@pytest.mark.parametrize("masked_call", [False, True])
def test_padding_has_no_gradient(masked_call):
    q, k, v = (x.requires_grad_() for x in qkv())
    pads = (0, 3)
    mask = frame_mask(ENDS, pads, 0)
    out = masked_attention(q, k, v, mask, pads) if masked_call else frame_attention(q, k, v, ENDS, pads)
    out.square().sum().backward()
    for x in (q, k, v):
        assert not x.grad[1, :3].any()
        assert x.grad[0].abs().amin(dim=(1, 2)).all()


def test_segments_of_tokens_meet_their_own_vector():
    tokens, vectors = torch.ones(1, 5, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    out = by_segment(torch.add, (2, 0, 3), [tokens], [vectors])
    assert out[0].tolist() == [[2, 3], [2, 3], [6, 7], [6, 7], [6, 7]]
