"""Guards of a training: steps without finite numbers, and memory."""

from __future__ import annotations

import logging
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pyramid_model.train.ranks import num_ranks

LOG = logging.getLogger("pyramid.training")
GROWTH = 1.2  # peak memory that is so many times that of the first steps is reported


class TrainingDiverged(RuntimeError):
    """Losses or gradients of more steps than allowed are not finite; the message names the step and the samples."""


def not_finite(figures: Mapping[str, float]) -> str:
    """Which of "loss" and "grad_norm" is not finite, such as "loss is nan"; empty if both are finite.

    The figures are means over all ranks, which are not finite if those of one rank are not: all ranks get one answer.
    """
    for name, title in (("loss", "loss"), ("grad_norm", "gradient norm")):
        if not math.isfinite(figures[name]):
            return f"{title} is {figures[name]}"
    return ""


def note_skip(skipped: list[dict[str, Any]], reason: str, step: int, ids: Sequence[str], max_skips: int) -> None:
    """Record a step that is skipped, with the samples of all ranks. A collective call of all ranks.

    Args:
        skipped: earlier skips, {"step", "reason", "ids"}; the new one is appended.
        reason: from `not_finite`.
        step: number of the step, from 1.
        ids: this rank's samples that may be the cause.
        max_skips: most skips of a training.

    Raises:
        TrainingDiverged: there are more skips than allowed.
    """
    of_ranks: list[list[str]] = [list(ids)]
    if num_ranks() > 1:
        of_ranks = [[] for _ in range(num_ranks())]
        dist.all_gather_object(of_ranks, list(ids))
    samples = sorted({sample for rank in of_ranks for sample in rank})
    if len(skipped) >= max_skips:
        earlier = f" {max_skips} steps were skipped before (optim.max_skips)." if max_skips else ""
        raise TrainingDiverged(
            f"{reason} at step {step}; the weights are still those of step {step - 1}.{earlier} "
            f"Samples: {', '.join(samples)}. Check these clips, or lower lr or grad_clip."
        )
    skipped.append({"step": step, "reason": reason, "ids": samples})
    LOG.warning("step %d is skipped: %s; samples: %s", step, reason, ", ".join(samples))


def state_bytes(
    objective: nn.Module, optimizers: Sequence[torch.optim.Optimizer], shadow: Mapping[str, Tensor]
) -> dict[str, int]:
    """Bytes that this rank holds of weights, gradients, optimiser state and averages, for the whole training."""
    weights = sum(map(_bytes, objective.parameters()))
    gradients = sum(_bytes(weight) for weight in objective.parameters() if weight.requires_grad)
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    moments = sum(_bytes(tensor) for state in states for tensor in state.values())
    return {
        "weights": weights,
        "gradients": gradients,
        "optimiser": moments,
        "averages": sum(map(_bytes, shadow.values())),
    }


def memory_plan(sizes: Mapping[str, int]) -> str:
    """One line for people: bytes by what they are for in MB, and the sum."""
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sizes.items())
    return f"memory of each worker: {sum(sizes.values()) / 1e6:,.1f} MB ({parts})"


def peak_gb() -> float:
    """Peak memory of this process in GB. With a GPU: of the GPU, since the last call. Without: since the start."""
    if torch.cuda.is_available():
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class PeakWatch:
    """Warns when the peak memory of later steps is more than GROWTH times that of earlier ones."""

    def __init__(self):
        self.limit_gb = math.inf

    def note(self, step: int, peak: float) -> None:
        """Compare the peak of the last steps, in GB, up to `step`."""
        if peak > self.limit_gb:
            LOG.warning(
                "memory grows: the steps up to %d needed %.2f GB, more than the limit of %.2f GB from earlier steps",
                *(step, peak, self.limit_gb),
            )
        if peak > self.limit_gb or math.isinf(self.limit_gb):
            self.limit_gb = GROWTH * peak


def _bytes(tensor: Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()
