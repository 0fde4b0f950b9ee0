"""Compiled blocks compute what the blocks compute."""

import copy

import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.sampler import Sampling, sample_video
from pyramid_model.parallel.compiling import compile_blocks


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def column(*sizes, batch=1):
    return [torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]


@torch.no_grad()
def test_compiled_blocks_predict_the_same_for_any_number_of_tokens(tiny_dit, text_rows):
    plain, timestep, text = copy.deepcopy(tiny_dit), torch.tensor([400.0]), text_rows(1)
    compile_blocks(tiny_dit, backend="eager")  # the graphs alone: what a backend makes of them needs a compiler
    torch._dynamo.reset()
    graphs = []
    for history in (1, 2, 4):
        clips = [column((history, 4, 4), (1, 8, 8))]
        close(tiny_dit(clips, timestep, text)[0], plain(clips, timestep, text)[0])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[2] == graphs[1]  # once for any number of frames


@torch.no_grad()
def test_compiled_blocks_take_on_every_form_that_sampling_needs(tiny_dit, text_rows):
    plain = copy.deepcopy(tiny_dit)
    sampling = Sampling(PyramidConfig(num_stages=2), (4, 4, 8), (1, 1), (2, 2), [3.0, 3.0, 3.0, 1.0])
    compile_blocks(tiny_dit, backend="eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for rows in (1, 2):
            text, clips = text_rows(rows), []
            for dit in (tiny_dit, plain):
                noise = Noise([torch.Generator().manual_seed(i) for i in range(rows)])
                clips.append(sample_video(dit, text, text, sampling, noise))
            close(*clips)
