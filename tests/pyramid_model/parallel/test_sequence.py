"""Facts about models that several ranks share: each gets what it would compute alone. Gloo on CPU, about 45 s."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NUM_RANKS = 4


SCRIPT = Path(__file__).parents[1] / "parallel_ranks.py"


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """`on_ranks(check, ...)` runs a check of parallel_ranks.py on four processes."""
    file = tmp_path_factory.mktemp("ranks") / "store"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    commands = [[sys.executable, str(SCRIPT), str(rank), str(file)] for rank in range(NUM_RANKS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen(command, **pipes, env=environment) for command in commands]

    def on_ranks(check, **arguments):
        for child in children:
            child.stdin.write(json.dumps([check, arguments]) + "\n")
            child.stdin.flush()
        failures = [failure for child in children if (failure := json.loads(child.stdout.readline()))]
        assert not failures, "\n".join(failures)

    yield on_ranks
    for child in children:
        child.kill()
        child.communicate()


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
