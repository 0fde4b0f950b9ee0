"""Parts of ring attention that need no second rank."""

import torch
from torch.nn import functional as F

from pyramid_model.parallel.ring import OnlineSoftmax, attention_with_lse, intersections, num_tokens, spans_before


def test_attention_to_parts_of_the_keys_merges_to_attention_to_all():
    q, k, v = torch.randn(3, 2, 7, 2, 8, generator=torch.Generator().manual_seed(0)).unbind()
    accumulator = OnlineSoftmax(q)
    for part in (slice(0, 2), slice(2, 3), slice(3, 7)):
        accumulator.add(slice(0, 2), slice(0, 7), *attention_with_lse(q, k[:, part], v[:, part]))
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(accumulator.output, expected)
    scores = torch.einsum("bnhd,bmhd->bnhm", q, k) / 8**0.5
    torch.testing.assert_close(accumulator.log_sum_exp, scores.logsumexp(-1))


def test_queries_that_attend_to_nothing_have_an_output_of_zero():
    accumulator = OnlineSoftmax(torch.randn(1, 3, 2, 4))
    assert not accumulator.output.any()
    assert torch.isneginf(accumulator.log_sum_exp).all()


def test_spans_are_cut_at_a_token_and_to_another_span():
    spans = [(0, 4), (6, 9)]
    assert spans_before(spans, 7) == [(0, 4), (6, 7)]
    assert spans_before(spans, 5) == [(0, 4)]
    assert intersections(spans, (3, 7)) == [(3, 4), (6, 7)]
    assert num_tokens(intersections(spans, (4, 6))) == 0
