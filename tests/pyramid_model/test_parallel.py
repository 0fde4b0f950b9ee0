"""Facts about models that several ranks share: each gets what it would compute alone. Gloo on CPU, about 30 s."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NUM_RANKS = 4
SCRIPT = Path(__file__).with_name("parallel_ranks.py")


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """`on_ranks(check, ranks, ...)` runs a check of parallel_ranks.py on the first so many of four processes."""
    file = tmp_path_factory.mktemp("ranks") / "store"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    commands = [[sys.executable, str(SCRIPT), str(rank), str(file)] for rank in range(NUM_RANKS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen(command, **pipes, env=environment) for command in commands]

    def on_ranks(check, ranks, **arguments):
        for child in children:
            child.stdin.write(json.dumps([check, ranks, arguments]) + "\n")
            child.stdin.flush()
        failures = [failure for child in children if (failure := json.loads(child.stdout.readline()))]
        assert not failures, "\n".join(failures)

    yield on_ranks
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_share_the_tokens_predict_what_one_predicts(on_ranks, ranks):
    on_ranks("forward", ranks)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_mean_of_their_gradients_is_the_gradient_of_one(on_ranks, ranks):
    on_ranks("gradients", ranks)
