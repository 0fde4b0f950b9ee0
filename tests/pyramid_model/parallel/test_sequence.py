"""Facts about models that several ranks share: each gets what it would compute alone. Gloo on CPU, about 45 s."""

import pytest


@pytest.mark.parametrize(("ulysses", "ring"), [(2, 1), (4, 1), (1, 2), (1, 4), (2, 2)])
def test_neighbours_that_share_the_tokens_predict_what_one_predicts(on_ranks, ulysses, ring):
    on_ranks("forward", ulysses=ulysses, ring=ring)


@pytest.mark.parametrize("ulysses", [2, 4])
def test_the_mean_of_their_gradients_is_the_gradient_of_one(on_ranks, ulysses):
    on_ranks("gradients", ulysses=ulysses)


def test_one_of_a_pair_predicts_without_the_prompt_and_the_other_with_it(on_ranks):
    on_ranks("guidance")


@pytest.mark.parametrize(
    ("layout", "max_bytes"),
    [((2, 1, 1), 2**30), ((1, 2, 1), 12_000), ((1, 1, 4), 2**30), ((1, 2, 2), 12_000), ((2, 2, 1), 2**30)],
)
def test_they_sample_the_clip_that_one_samples_and_remember_history(on_ranks, layout, max_bytes):
    on_ranks("sampling", layout=layout, max_bytes=max_bytes)


@pytest.mark.slow
def test_compiled_blocks_can_be_shared(on_ranks):
    on_ranks("compiled")


def test_what_cannot_be_shared_is_refused_with_the_remedy(on_ranks):
    on_ranks("refusals")
