"""Four processes that run the checks of `parallel_ranks.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NUM_RANKS = 4
SCRIPT = Path(__file__).parents[1] / "parallel_ranks.py"


@pytest.fixture(scope="package")
def on_ranks(tmp_path_factory):
    """`on_ranks(check, num_ranks=4, **arguments)` runs a check on the processes; returns the values of the ranks."""
    file = tmp_path_factory.mktemp("ranks") / "store"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    commands = [[sys.executable, str(SCRIPT), str(rank), str(file)] for rank in range(NUM_RANKS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen(command, **pipes, env=environment) for command in commands]

    def on_ranks(check, num_ranks=NUM_RANKS, **arguments):
        for child in children:
            child.stdin.write(json.dumps([check, num_ranks, arguments]) + "\n")
            child.stdin.flush()
        failures, values = zip(*(json.loads(child.stdout.readline()) for child in children), strict=True)
        assert not any(failures), "\n".join(filter(None, failures))
        return values[:num_ranks]

    yield on_ranks
    for child in children:
        child.kill()
        child.communicate()
