"""One rank of the checks of test_parallel.py: `python parallel_ranks.py RANK FILE`, then a JSON line a check on stdin.

Each rank holds what it gets against what it computes alone. Answers with a JSON line: null, or the traceback.
"""

import copy
import json
import os
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.parallel.sequence import sequence_parallel
from pyramid_model.text import TextFeatures

TINY = {"latent_channels": 4, "num_heads": 4, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}
GROUPS = ((0, 1), (0, 1, 2), (0, 1, 2, 3))
CLIPS = {  # per column the sizes of its clips
    "picture": [[(1, 4, 4)]],
    "history": [[(2, 4, 4), (1, 8, 8), (1, 8, 8)]],
    "columns": [[(1, 4, 4), (1, 8, 4)], [(1, 8, 8)], [(3, 4, 4), (1, 4, 12)]],
}


def models():
    """Both DiTs with both history times and random weights, the same on every rank."""
    for history_time in ("shared", "clean"):
        flux = {"num_double_blocks": 1, "num_single_blocks": 1, "rope_axes": (2, 2, 4)}
        mmdit = {"num_blocks": 2, "position_grid": 8, "position_base": 4}
        for dit in (
            MiniFlux(MiniFluxConfig(**TINY, **flux, history_time=history_time)),
            MMDiT(MMDiTConfig(**TINY, **mmdit, history_time=history_time)),
        ):
            torch.manual_seed(0)
            with torch.no_grad():
                for parameter in dit.parameters():
                    parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
            yield dit.eval()


def text_rows(rows, seed=7):
    """Prompts of 5, 2, 4, 5, 2, … tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.tensor([(5, 2, 4)[row % 3] for row in range(rows)])[:, None]
    return TextFeatures(torch.randn(rows, 5, 6, generator=generator), mask, torch.randn(rows, 5, generator=generator))


def inputs(case, samples=2, seed=0):
    """Arguments of a DiT: columns, timesteps, text."""
    generator = torch.Generator().manual_seed(seed)
    columns = [[torch.randn(samples, 4, *size, generator=generator) for size in column] for column in CLIPS[case]]
    rows = samples * len(columns)
    return columns, 1000 * torch.rand(rows, generator=generator), text_rows(rows)


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


@torch.no_grad()
def check_forward(group):
    for dit in models():
        shared = copy.deepcopy(dit)
        sequence_parallel(shared, group)
        for case in CLIPS:
            args = inputs(case)
            for own, alone in zip(shared(*args), dit(*args), strict=True):
                close(own, alone)


def check_gradients(group):
    for dit in models():
        shared = copy.deepcopy(dit)
        sequence_parallel(shared, group)
        for model in (shared, dit):
            sum(out.square().mean() for out in model(*inputs("columns"))).backward()
        for (name, own), alone in zip(shared.named_parameters(), dit.parameters(), strict=True):
            dist.all_reduce(own.grad, group=group)
            error = torch.dist(own.grad / dist.get_world_size(group), alone.grad)
            assert error <= 1e-5 * alone.grad.norm(), f"{name}: {error}"  # both are 0 for the text's last queries


def main(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=4, timeout=timedelta(seconds=60))
    groups = {ranks: dist.new_group(ranks) for ranks in GROUPS}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        check, ranks, arguments = json.loads(line)
        answer = None
        try:
            if rank < ranks:
                globals()[f"check_{check}"](groups[GROUPS[ranks - 2]], **arguments)
        except Exception:
            answer = traceback.format_exc()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
