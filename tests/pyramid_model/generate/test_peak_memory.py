"""Peak memory of computations whose peak is known by hand. Runs in about 2 s."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from pyramid_model.generate.peak_memory import peak_bytes

KIB = 1024  # of a 16x16 float matrix


@pytest.fixture
def x():
    return torch.ones(16, 16)


def test_a_chain_of_products_holds_two_matrices_at_a_time(x):
    def chain():
        y = x
        for _ in range(5):
            y = y @ x
        return y

    assert peak_bytes(chain) == 2 * KIB


def test_what_is_kept_adds_up(x):
    assert peak_bytes(lambda: [x @ x for _ in range(5)]) == 5 * KIB


def test_views_and_work_in_place_cost_nothing(x):
    assert peak_bytes(lambda: x.t().reshape(4, 4, 16)[1:].add_(1).mul_(2)) == 0
    assert peak_bytes(lambda: (x @ x).t()[1:].add_(1)) == KIB


def test_memory_that_was_let_go_is_counted_once(x):
    assert peak_bytes(lambda: [float((x @ x).sum()) for _ in range(5)]) < 1.1 * KIB


def test_the_gradient_holds_what_the_forward_pass_saved(x):
    def step():
        y = x.requires_grad_()
        for _ in range(6):
            y = y.sigmoid()
        y.sum().backward()

    assert 7 * KIB <= peak_bytes(step) < 9 * KIB  # six saved results, one or two gradients


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sizes_alone_are_enough(device):
    with FakeTensorMode():
        x = torch.empty(1_000_000, 1_000_000, dtype=torch.bfloat16, device=device)
        assert peak_bytes(lambda: (x + x) * x) == 2 * 2 * 10**12


def test_attention_without_data_makes_no_table_of_scores():
    with FakeTensorMode():
        q = torch.empty(1, 2, 4096, 64, dtype=torch.bfloat16, device="cuda")
        mask = torch.ones(4096, 4096, dtype=torch.bool, device="cuda")
        out, sums = 2 * 4096 * 64 * 2, 2 * 4096 * 4
        assert peak_bytes(lambda: F.scaled_dot_product_attention(q, q, q)) == out + sums
        masked = peak_bytes(lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=mask, scale=1.0))
        assert masked == out + sums + 4096 * 4096 * 2
