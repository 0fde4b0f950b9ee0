"""Processes that run the checks of `parallel_ranks.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NUM_RANKS = 4
SCRIPT = Path(__file__).parents[1] / "parallel_ranks.py"


class Ranks:
    """Processes that each run one rank of a check at a time."""

    def __init__(self, file, num_processes=NUM_RANKS):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        commands = [[sys.executable, str(SCRIPT), str(rank), str(file)] for rank in range(num_processes)]
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

    Trainings on one number of ranks have processes of their own, whose process group lasts; a failure ends them.
    """
    folder = tmp_path_factory.mktemp("ranks")
    ranks = {}

    def on_ranks(check, num_ranks=NUM_RANKS, **arguments):
        name = f"training{num_ranks}" if check == "training" else "others"
        if name not in ranks:
            ranks[name] = Ranks(folder / name, num_ranks if check == "training" else NUM_RANKS)
        try:
            return ranks[name].run(check, num_ranks, arguments)
        except BaseException:
            ranks.pop(name).end()
            raise

    yield on_ranks
    for group in ranks.values():
        group.end()
