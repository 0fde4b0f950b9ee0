"""Four processes that run the checks of `parallel_ranks.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NUM_RANKS = 4
SCRIPT = Path(__file__).parents[1] / "parallel_ranks.py"


class Ranks:
    """Four processes that each run one rank of a check at a time."""

    def __init__(self, file):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        commands = [[sys.executable, str(SCRIPT), str(rank), str(file)] for rank in range(NUM_RANKS)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.children = [subprocess.Popen(command, **pipes, env=environment) for command in commands]

    def run(self, check, num_ranks, arguments):
        for child in self.children:
            child.stdin.write(json.dumps([check, num_ranks, arguments]) + "\n")
            child.stdin.flush()
        failures, values = zip(*(json.loads(child.stdout.readline()) for child in self.children), strict=True)
        assert not any(failures), "\n".join(filter(None, failures))
        return values[:num_ranks]

    def end(self):
        for child in self.children:
            child.kill()
            child.communicate()


@pytest.fixture(scope="package")
def on_ranks(tmp_path_factory):
    """`on_ranks(check, num_ranks=4, **arguments)` runs a check on the processes; returns the values of the ranks.

    Checks of trainings have processes of their own: these fork, which hangs in a process that has computed gradients.
    """
    folder = tmp_path_factory.mktemp("ranks")
    ranks = {}

    def on_ranks(check, num_ranks=NUM_RANKS, **arguments):
        name = "training" if check == "training" else "others"
        if name not in ranks:
            ranks[name] = Ranks(folder / name)
        return ranks[name].run(check, num_ranks, arguments)

    yield on_ranks
    for group in ranks.values():
        group.end()
