"""A training on two ranks that torchrun started, without Ray. About half a minute."""

import json
import os
import subprocess
import sys

import pytest

from tasks.tables.delta import read_table

pytestmark = pytest.mark.slow
STACK = {"channels": [4, 4, 8, 8], "layers": [1, 1, 1, 1], "norm_groups": 2}
SETTINGS = {
    "model": {"latent_channels": 4, "encoder": STACK, "decoder": STACK},
    "batch": {"num_frames": 9},
    "optim": {"num_steps": 3, "batch_size": 1, "warmup_steps": 1, "log_every": 1},
    "num_batches": 2,
    "use_gpu": "no",
}


def train(root: str, num_ranks: int, **changes) -> subprocess.CompletedProcess:
    """`torchrun … train-vae`."""
    options = ["--root", root, "--set", f"train_vae={json.dumps(SETTINGS | changes)}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [*launch, "-m", "flows.cli.torchrun", "train-vae", *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_two_ranks_train_a_model_that_is_recorded_like_any_other(squares):
    done = train(squares.root, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    [row] = read_table(squares.root, "models").to_pylist()
    assert row["uri"] in done.stdout
    assert [point["step"] for point in json.loads(row["curve"])] == [0, 1, 2, 3]
    assert json.loads(row["config"])["settings"]["num_workers"] == 2
    assert "train_vae 3/3 steps, loss" in done.stderr
    again = train(squares.root, 1)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "trained before" in again.stdout
    assert read_table(squares.root, "models").num_rows == 1


def test_ranks_that_do_not_divide_the_batches_are_refused_before_anything_is_written(squares):
    refused = train(squares.root, 2, num_batches=3)
    assert refused.returncode != 0
    assert "2 workers cannot divide num_batches 3" in refused.stderr
    assert read_table(squares.root, "models").num_rows == 0
