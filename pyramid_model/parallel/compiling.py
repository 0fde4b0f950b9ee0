"""Compiled transformer blocks."""

from __future__ import annotations

import torch

from pyramid_model.dit.packing import Packing
from pyramid_model.dit.transformer import DiT
from pyramid_model.parallel.sequence import Share

MAX_FORMS = 64  # most compiled versions of one block: with and without text, KV cache, guidance; torch's default is 8


def compile_blocks(dit: DiT, backend: str = "inductor") -> None:
    """Compile the code of the blocks except attention, for any number of tokens.

    Blocks of a kind share their code, so it is compiled once, not once per block. Attention is not compiled: it is one
    kernel per frame, and its loop over frames would be compiled again for each number of frames.

    Args:
        dit: its blocks are compiled in place, at their first call.
        backend: of torch.compile; "inductor" needs a C++ compiler, on GPUs Triton.
    """
    # not a decorator on `attend`: importing the model would then load the compiler, which takes seconds
    for layout in (Packing, Share):
        if not getattr(layout.attend, "_torchdynamo_disable", False):
            layout.attend = torch.compiler.disable(layout.attend)  # pyright: ignore[reportAttributeAccessIssue]
    torch._dynamo.config.recompile_limit = max(MAX_FORMS, torch._dynamo.config.recompile_limit)
    for block in dit.blocks:
        block.compile(backend=backend, dynamic=True)
