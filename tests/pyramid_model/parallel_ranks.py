"""One rank of the tests of parallel/: `python parallel_ranks.py RANK FILE`, then a JSON line for each check on stdin.

A line is [check, number of ranks, arguments]; further ranks do nothing. Each rank compares what it gets with what it
computes alone. Answers with a JSON line [traceback or null, value of the check].
"""

import copy
import faulthandler
import functools
import json
import os
import re
import sys
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import training_ranks

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.packed import packed_columns
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.flow.sampler import Sampling, sample_units
from pyramid_model.flow.schedule import Schedule
from pyramid_model.parallel.compiling import compile_blocks
from pyramid_model.parallel.guidance import guidance_parallel
from pyramid_model.parallel.layout import Layout, share_sampling
from pyramid_model.parallel.sequence import sequence_parallel
from pyramid_model.text import TextFeatures

TINY = {"latent_channels": 4, "num_heads": 4, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}
CLIPS = {  # per column the sizes of its clips
    "picture": [[(1, 4, 4)]],
    "history": [[(2, 4, 4), (1, 8, 8), (1, 8, 8)]],
    "columns": [[(1, 4, 4), (1, 8, 4)], [(1, 8, 8)], [(3, 4, 4), (1, 4, 12)]],
}


@functools.cache
def models():
    """Both DiTs, each as released, with clean history time, and not causal; random weights, the same on every rank."""
    made = []
    for more in ({}, {"history_time": "clean"}, {"causal": False}):
        flux = {"num_double_blocks": 1, "num_single_blocks": 1, "rope_axes": (2, 2, 4)}
        mmdit = {"num_blocks": 2, "position_grid": 8, "position_base": 4}
        for dit in (
            MiniFlux(MiniFluxConfig(**TINY, **flux, **more)),
            MMDiT(MMDiTConfig(**TINY, **mmdit, **more)),
        ):
            torch.manual_seed(0)
            with torch.no_grad():
                for parameter in dit.parameters():
                    parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
            made.append(dit.eval())
    return made


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


def packed_inputs():
    """Arguments of a DiT with clean history time: all five units of two stages, two samples each."""
    schedule, generator = Schedule(PyramidConfig(num_stages=2)), torch.Generator().manual_seed(0)
    latents = torch.randn(4, 4, 5, 8, 8, generator=generator)
    packed = packed_columns(latents, schedule, Noise(generator), (1, 1), range(5))
    timestep = torch.stack(packed.timestep, dim=1).flatten()
    return packed.columns, timestep, text_rows(2 * len(packed.columns)), None, 0, packed.branches


def all_inputs(dit, with_packed=True):
    """Arguments of several calls of a DiT."""
    cases = [inputs(case) for case in CLIPS]
    return [*cases, packed_inputs()] if dit.config.clean_history and with_packed else cases


def close(actual, expected, atol=1e-5):
    # not torch.testing: among ranks it loads what takes ten seconds
    assert torch.allclose(actual, expected, atol=atol, rtol=1e-5), f"{(actual - expected).abs().max():.2g} apart"


@torch.no_grad()
def check_forward(ulysses, ring):
    for dit in models():
        shared = copy.deepcopy(dit)
        sequence_parallel(shared, ulysses, ring)
        for args in all_inputs(dit, with_packed=ring == 1):  # units are packed in training alone
            for own, alone in zip(shared(*args), dit(*args), strict=True):
                close(own, alone)


@torch.no_grad()
def check_guidance():
    for dit in models():
        shared = copy.deepcopy(dit)
        guidance_parallel(shared)
        computed = []
        shared.patch_in.register_forward_hook(lambda module, inputs, output, to=computed: to.append(output.numel()))
        for samples in (1, 2, 3):
            args = inputs("columns", samples)
            for own, alone in zip(shared(*args), dit(*args), strict=True):
                close(own, alone)
        per_clip = len(computed) // 3
        one, two, three = (sum(computed[i : i + per_clip]) for i in range(0, len(computed), per_clip))
        assert two == one, "half of two samples"
        assert three == 3 * one, "all of three"


def check_sampling(layout, max_bytes):
    for model in (0, 3):  # miniFLUX as released, MMDiT with clean history time
        shared = copy.deepcopy(models()[model])
        share_sampling(shared, Layout(*layout))
        clip, held = sampled(shared, HistoryReuse(shared, max_bytes=max_bytes))
        close(clip, sampled_alone(model), atol=3e-5)
        assert 0 < max(held) <= max_bytes
        clips = [torch.empty_like(clip) for _ in range(dist.get_world_size())]
        dist.all_gather(clips, clip)
        assert all(torch.equal(other, clip) for other in clips), "noise is drawn from seeds, so nobody sends it"


@functools.cache
def sampled_alone(model):
    """The clip that a model makes on one rank, and with nothing remembered."""
    dit = models()[model]
    return sampled(dit, HistoryReuse(dit, max_bytes=0))[0]


def sampled(dit, reuse):
    """Latents of two prompts, guided in all units but one, and the bytes that were held after each unit."""
    sampling = Sampling(PyramidConfig(), (4, 8, 8), (1, 1, 1), (2, 2, 1), [3.0, 2.0, 1.0, 2.0])
    noise = Noise([torch.Generator().manual_seed(seed) for seed in range(2)])
    units, held = [], []
    for unit in sample_units(dit, text_rows(2), text_rows(2, seed=8), sampling, noise, reuse=reuse):
        units.append(unit)
        held.append(sum(kv_cache.num_bytes for kv_cache in reuse.kv_caches.values()))
    return torch.cat(units, dim=2), held


def check_gradients(ulysses):
    for dit in models():
        shared = copy.deepcopy(dit)
        sequence_parallel(shared, ulysses)
        for model in (shared, dit):
            calls = [inputs("columns"), *([packed_inputs()] if dit.config.clean_history else [])]
            sum(out.square().mean() for args in calls for out in model(*args)).backward()
        names, sizes = zip(*((name, x.numel()) for name, x in dit.named_parameters()), strict=True)
        own, alone = (torch.cat([x.grad.flatten() for x in model.parameters()]) for model in (shared, dit))
        dist.all_reduce(own)
        own /= dist.get_world_size()
        for name, mean, expected in zip(names, own.split(sizes), alone.split(sizes), strict=True):
            error = torch.dist(mean, expected)
            assert error <= 1e-5 * expected.norm(), f"{name}: {error}"  # both are 0 for the text's last queries
        dit.zero_grad()


def check_refusals():
    dit = copy.deepcopy(models()[0])
    refused(lambda: sequence_parallel(dit, ulysses=3), "ulysses 3 does not divide the 4 heads: set ulysses")
    refused(lambda: sequence_parallel(dit, ulysses=1, ring=3), "4 ranks do not divide into groups of")
    refused(
        lambda: guidance_parallel(dit, distance=4),
        "4 ranks cannot be paired at a distance of 4: start a multiple of 8 ranks",
    )
    sequence_parallel(dit, ulysses=1, ring=2)
    refused(lambda: dit(*inputs("picture")), "ring attention has no gradients: sample under torch.no_grad()")
    paired = copy.deepcopy(models()[0])
    guidance_parallel(paired)
    refused(lambda: paired(*inputs("picture")), "guidance on two ranks has no gradients")


def refused(call, message):
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        call()


@torch.no_grad()
def check_compiled():
    shared = copy.deepcopy(models()[0])
    sequence_parallel(shared, ulysses=2, ring=2)
    compile_blocks(shared, backend="eager")
    args = inputs("history")
    close(shared(*args)[0], models()[0](*args)[0])


def main(rank, file):
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for number, line in enumerate(sys.stdin):
        check, num_ranks, arguments = json.loads(line)
        answer = [None, None]
        if rank < num_ranks:
            group = {"init_method": f"file://{file}{number}", "rank": rank, "world_size": num_ranks}
            function = (globals() | vars(training_ranks))[f"check_{check}"]
            answer = answer_of(function, arguments, group, lasts=check == "training")
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def answer_of(function, arguments, group, lasts):
    """[traceback or null, value] of a check in a process group.

    lasts: the group is that of all checks of this process, since torch keeps the device meshes of destroyed groups.
    """
    answer = [None, None]
    faulthandler.dump_traceback_later(45)
    if not dist.is_initialized():
        dist.init_process_group("gloo", **group, timeout=timedelta(seconds=60))
    try:
        answer[1] = function(**arguments)
        dist.barrier()
    except Exception:
        answer[0] = traceback.format_exc()
    if not lasts:
        dist.destroy_process_group()  # each group of a check has a thread that never rests
    faulthandler.cancel_dump_traceback_later()
    return answer


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
