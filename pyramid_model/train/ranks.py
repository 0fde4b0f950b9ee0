"""The ranks of a training, as the loop sees them; one process without a process group is one rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def num_ranks() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside a DistributedDataParallel wrapper, or itself."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def accumulating(objective: nn.Module, last: bool) -> Iterator[None]:
    """Context of one of several backward passes of a step: copies exchange gradients in the last one only."""
    with nullcontext() if last or not isinstance(objective, DistributedDataParallel) else objective.no_sync():
        yield


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a tensor over all ranks, on every rank; where a rank has no finite number, every rank gets none."""
    if num_ranks() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / num_ranks()
