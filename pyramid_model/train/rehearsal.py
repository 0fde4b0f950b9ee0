"""One forward and backward pass before the first step, on the batch that needs the most memory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pyramid_model.train.guards import memory_plan
from pyramid_model.train.loop import Batch


class DoesNotFit(RuntimeError):
    """A step does not fit into the memory; the message has the plan and the settings to change."""


def rehearse(objective: nn.Module, batch: Batch, sizes: Mapping[str, int]) -> int | None:
    """Compute the gradient of the largest batch and drop it. A collective call of all ranks.

    Args:
        objective: of the training; its weights and random numbers stay as they are.
        batch: the largest one.
        sizes: bytes of the state, for the message (`guards.state_bytes`).

    Returns:
        Bytes that the pass needed on top of weights and gradients; None where the system does not tell them.

    Raises:
        DoesNotFit: the memory was not enough.
    """
    device = next(objective.parameters()).device
    before = _bytes_in_use(device)
    try:
        with torch.random.fork_rng():
            objective(*batch.args)[0].backward()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        if not _is_out_of_memory(err):
            raise
        raise DoesNotFit(
            f"a step on the largest batch ({len(batch.ids)} samples, first {batch.ids[0]}) does not fit on {device}. "
            f"Plan of the {memory_plan(sizes)}. Lower optim.batch_size or mix.token_budget, set "
            "parallel.checkpoint_blocks to 1, parallel.share_weights to 0 with more workers, or parallel.precision to "
            "bfloat16"
        ) from err
    finally:
        objective.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    most = _most_bytes(device)
    return None if before is None or most is None else max(0, most - before - sizes["gradients"])


def _is_out_of_memory(err: BaseException) -> bool:
    """Whether an error is one of memory; the CPU's allocator of torch raises a RuntimeError."""
    return isinstance(err, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(err)


def _bytes_in_use(device: torch.device) -> int | None:
    """Bytes in use now, from which `_most_bytes` counts; None if this system does not reset the peak of a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _most_bytes(device)
    return None


def _most_bytes(device: torch.device) -> int | None:
    """Most bytes in use since `_bytes_in_use`; on a CPU, of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return None
