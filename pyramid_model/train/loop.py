"""The training loop of all models, for one process or one worker of several; it can be interrupted and resumed.

The state after step n depends only on the config, the data and n. A checkpoint contains the whole state, so a resumed
run ends with the same weights, bit for bit, as a run without interruption (on the same machine and thread count).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pyramid_model.train.config import OptimConfig
from pyramid_model.train.ema import EMA
from pyramid_model.train.ranks import accumulating, mean_over_ranks, unwrapped
from pyramid_model.train.saved_state import DamagedCheckpoint, previous_of, read_state

LOG = logging.getLogger("pyramid.training")


class TrainingDiverged(RuntimeError):
    """A loss or a gradient is not finite; the message names the step and the samples."""


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of the objective, `objective(*args)`, and the ids of its samples for error messages."""

    args: tuple[Any, ...]
    ids: list[str]


@dataclass
class TrainState:
    """A training run between two steps.

    objective: module that returns (loss, parts); may be wrapped for data parallelism.
    optimizer: updates the parameters of the objective.
    ema: averaged weights of the objective.
    step: number of finished steps.
    curve: rows so far, {"step", "loss", "lr", …}.
    newest_is_damaged: the state comes from the checkpoint before the newest, which the next one replaces.
    """

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    newest_is_damaged: bool = False

    @classmethod
    def start(cls, objective: nn.Module, config: OptimConfig) -> Self:
        """State before the first step."""
        return cls(objective, make_optimizer(objective, config), EMA(unwrapped(objective), config.ema_decay))

    def save(self, path: str | Path) -> None:
        """Write the state to one file, atomically; the file before it stays as `previous_of`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "objective": unwrapped(self.objective).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "curve": self.curve,
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(content, partial)
        if path.exists() and not self.newest_is_damaged:
            path.replace(previous_of(path))
        partial.replace(path)
        self.newest_is_damaged = False

    def load(self, path: str | Path) -> bool:
        """Restore the state from a checkpoint or, if that is damaged, from the one before it.

        Returns whether there is a checkpoint.

        Raises:
            DamagedCheckpoint: none of the two can be used.
        """
        damage: DamagedCheckpoint | None = None
        for file in (str(path), previous_of(path)):
            try:
                if self._restore(file):
                    self.newest_is_damaged = damage is not None
                    return True
            except DamagedCheckpoint as err:
                LOG.warning("%s", err)
                damage = damage or err
        if damage:
            raise damage
        return False

    def _restore(self, path: str, name: str = "") -> bool:
        """Restore the state from one local file; returns whether it exists. name: of the file in messages."""
        if not Path(path).exists():
            return False
        content = read_state(path, name)
        try:
            unwrapped(self.objective).load_state_dict(content["objective"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.ema.load_state_dict(content["ema"])
        except Exception as err:  # of other names or shapes
            raise DamagedCheckpoint(name or path, f"it is of another training ({type(err).__name__})") from err
        self.step, self.curve = content["step"], content["curve"]
        return True

    def use_ema(self) -> None:
        """Replace the model's weights by the averaged weights; call once, after the last step."""
        self.ema.swap(unwrapped(self.objective))


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, not biases and norms."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8)


def learning_rate(config: OptimConfig, step: int) -> float:
    """Learning rate of a step: a linear rise, then half a cosine down to `min_lr_ratio` of the peak."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.num_steps - 1 - config.warmup_steps)
    share = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * share


def train(
    state: TrainState,
    config: OptimConfig,
    batches_for_step: Callable[[int], Sequence[Batch]],
    *,
    validate: Callable[[], dict[str, float]] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    checkpoint: str | Path | None = None,
) -> list[dict[str, float]]:
    """Run from `state.step` to `config.num_steps`.

    Args:
        state: changed in place.
        config: see `OptimConfig`.
        batches_for_step: this worker's batches of a step, whose gradients are averaged; must depend only on the step
            and the worker's rank. Every worker has the same number of batches.
        validate: returns figures of the model, which then has its averaged weights. Pass it on all workers, so that
            they stay synchronised.
        on_log: called with each new row of the curve; pass it on the first worker only.
        checkpoint: file to write; pass it on the first worker only.

    Returns:
        The whole curve, including the rows of earlier runs. Losses are means over the batches of all workers.

    Raises:
        TrainingDiverged: a loss or gradient is not finite; the weights are still those before that step.
    """
    started = time.perf_counter()
    if state.step == 0 and validate is not None:
        _record(state, {"step": 0, **_validated(state, validate)}, on_log)
    while state.step < config.num_steps:
        row = _train_step(state, config, batches_for_step(state.step))
        last = state.step == config.num_steps
        figures = _validated(state, validate) if validate and (last or _due(state.step, config.val_every)) else {}
        row |= figures
        if last or figures or _due(state.step, config.log_every):
            _record(state, row | {"elapsed_s": time.perf_counter() - started}, on_log)
        if checkpoint is not None and (last or _due(state.step, config.checkpoint_every)):
            state.save(checkpoint)
    return state.curve


def _train_step(state: TrainState, config: OptimConfig, batches: Sequence[Batch]) -> dict[str, float]:
    """Do one optimiser step and return its row of the curve."""
    lr = learning_rate(config, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    losses = _backward(state.objective, batches)
    grad_norm = nn.utils.clip_grad_norm_(state.objective.parameters(), config.grad_clip)
    grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
    figures = dict(zip(losses, mean_over_ranks(torch.stack(list(losses.values()))).tolist(), strict=True))
    figures |= {"grad_norm": float(grad_norm)}
    _check_finite(figures, state.step, [sample for batch in batches for sample in batch.ids])
    state.optimizer.step()
    state.ema.update(unwrapped(state.objective))
    state.step += 1
    return {"step": state.step, "loss": figures["loss"], "lr": lr, "grad_norm": figures["grad_norm"]} | figures


def _backward(objective: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Compute the gradient of the mean loss of this worker's batches; returns the mean of "loss" and of its parts."""
    rows: list[dict[str, Tensor]] = []
    for number, batch in enumerate(batches, 1):
        with accumulating(objective, last=number == len(batches)):
            loss, parts = objective(*batch.args)
            (loss / len(batches)).backward()
        rows.append({"loss": loss.detach()} | parts)
    return {name: torch.stack([row[name].float() for row in rows]).mean() for name in rows[0]}


def _check_finite(figures: dict[str, float], step: int, ids: list[str]) -> None:
    for name, value in (("loss", figures["loss"]), ("gradient norm", figures["grad_norm"])):
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"{name} is {value} at step {step + 1}; the weights are still those of step {step}. "
                f"Samples: {', '.join(ids)}. Check these clips, or lower lr or grad_clip."
            )


def _validated(state: TrainState, validate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Validation figures of the averaged weights. Restores the trained weights exactly."""
    model = unwrapped(state.objective)
    state.ema.swap(model)
    was_training = model.training
    model.eval()
    try:
        return validate()
    finally:
        model.train(was_training)
        state.ema.swap(model)


def _record(state: TrainState, row: dict[str, float], on_log: Callable[[dict[str, float]], None] | None) -> None:
    state.curve.append(row)
    if on_log is not None:
        on_log(row)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
