"""The training loop of all models, for one process or one worker of several; it can be interrupted and resumed.

The state after step n depends only on the config, the data and n. A checkpoint contains the whole state, so a resumed
run ends with the same weights, bit for bit, as a run without interruption (on the same machine and thread count).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

from pyramid_model.train.checkpoints import Checkpoints
from pyramid_model.train.config import OptimConfig
from pyramid_model.train.ema import EMA
from pyramid_model.train.guards import PeakWatch, not_finite, note_skip, peak_gb
from pyramid_model.train.ranks import accumulating, mean_over_ranks, unwrapped

LOG = logging.getLogger("pyramid.training")


DISCRIMINATOR = "discriminator."  # names of its weights begin so
JUDGED = ("val_loss", "val_mse")  # figures of a validation that say which step is best; lower is better


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of the objective, `objective(*args)`, and the ids of its samples for error messages.

    weight: in the mean over the batches of all ranks; the mean of all weights is 1. A batch of weight 0 is computed
        only so that every rank has the same number of batches.
    """

    args: tuple[Any, ...]
    ids: list[str]
    weight: float = 1.0


@dataclass
class TrainState:
    """A training run between two steps.

    objective: module that returns (loss, parts); may be wrapped for data parallelism.
    optimizers: each updates some of the parameters of the objective.
    ema: averaged weights of the objective.
    step: number of finished steps, with those of the trainings that this one continues.
    first_step: step at which this training began.
    untrained: validation figures of the model before the first step of all.
    curve: rows of this training so far, {"step", "loss", "lr", …}.
    best: step and figure of the best validation; None before the first.
    skipped: steps without finite numbers, {"step", "reason", "ids"}.
    """

    objective: nn.Module
    optimizers: list[torch.optim.Optimizer]
    ema: EMA
    step: int = 0
    first_step: int = 0
    untrained: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    best: tuple[int, float] | None = None
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, objective: nn.Module, config: OptimConfig) -> Self:
        """State before the first step."""
        model = unwrapped(objective)
        return cls(objective, make_optimizers(model, config), EMA(model, config.ema_decay))

    def tensors(self) -> dict[str, Any]:
        """All tensors of the training by role, for `Checkpoints`; shards stay shards."""
        model = unwrapped(self.objective)
        options = StateDictOptions(ignore_frozen_params=True)
        weights, optimizer = get_state_dict(model, self.optimizers, options=options)
        role = {"weights": weights, "optimizer": optimizer, "ema": self.ema.shadow}
        return {"model": role, "rng": torch.get_rng_state()}

    def facts(self) -> dict[str, Any]:
        """Numbers of the training that are no tensors. Data and noise are functions of seed, step and batch."""
        numbers = {"step": self.step, "first_step": self.first_step, "ema_updates": self.ema.num_updates}
        rows = {"curve": list(self.curve), "skipped": list(self.skipped)}
        return numbers | rows | {"best": self.best, "untrained": dict(self.untrained)}

    def restore(self, tensors: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Take over a checkpoint; the tensors of the averages were filled in place."""
        role = tensors["model"]
        set_state_dict(
            unwrapped(self.objective),
            self.optimizers,
            model_state_dict=role["weights"],
            optim_state_dict=role["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )
        torch.set_rng_state(tensors["rng"])
        self.ema.num_updates = facts["ema_updates"]
        self.step, self.first_step, self.curve = facts["step"], facts["first_step"], list(facts["curve"])
        self.untrained = dict(facts["untrained"])
        self.skipped = list(facts["skipped"])
        self.best = tuple(facts["best"]) if facts["best"] else None

    def begin(self, config: OptimConfig, untrained: dict[str, float]) -> None:
        """Begin another training with the weights, moments and averages of the one that was loaded.

        Its steps are counted on, so that it goes on in the data where the other one ended. It has its own settings,
        curve and best step. untrained: figures of the initial weights on its held-out data.
        """
        self.first_step, self.untrained = self.step, untrained
        self.curve, self.skipped, self.best = [], [], None
        for group in self.param_groups():
            group["weight_decay"] = config.weight_decay if group["params"][0].ndim > 1 else 0.0
            if "betas" in group:
                group["betas"] = config.betas

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters of all optimisers, with their settings."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def use_ema(self) -> None:
        """Replace the model's weights by the averaged weights; call once, after the last step."""
        self.ema.swap(unwrapped(self.objective))

    def model_weights(self) -> dict[str, Any]:
        """The averaged weights that were trained, whole and on the CPU, on the first rank only.

        A collective call, once at the end.
        """
        self.use_ema()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(unwrapped(self.objective), options=options)


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest. Biases and norms do not decay.

    A discriminator has an AdamW of its own, with the learning rate `lr_scale` of the model times that of the others.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    judging = [weight for name, weight in named if name.startswith(DISCRIMINATOR)]
    named = [(name, weight) for name, weight in named if not name.startswith(DISCRIMINATOR)]
    matrices = [weight for name, weight in named if config.name == "muon" and is_hidden_matrix(name, weight)]
    ids = set(map(id, matrices))
    optimizers: list[torch.optim.Optimizer] = [_adamw([weight for _, weight in named if id(weight) not in ids], config)]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        for weight in matrices:
            muon.state[weight] = {"momentum_buffer": torch.zeros_like(weight)}
        optimizers.append(muon)
    if judging:
        optimizers.append(_adamw(judging, config, lr_scale=model.lr_scale))
    return optimizers


def _adamw(weights: Sequence[nn.Parameter], config: OptimConfig, **more: Any) -> torch.optim.AdamW:
    """more: further entries of its groups."""
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay, **more},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0, **more},
    ]
    groups = [group for group in groups if group["params"]]  # a checkpoint cannot hold an empty one
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8)
    # Moments from the start, so that a checkpoint has the same names at every step.
    for weight in weights:
        moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        adamw.state[weight] = {"step": torch.tensor(0.0), **moments}
    return adamw


def is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """Whether a weight is a matrix inside a block, which Muon is made for; those of modulations are not."""
    return weight.ndim == 2 and "blocks." in name and "modulation" not in name


def learning_rate(config: OptimConfig, step: int) -> float:
    """Learning rate of a step, counted from the first of the training.

    It rises linearly, stays at the peak until the decay begins, then falls by half a cosine to `min_lr_ratio` of it.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    decay_from = max(config.warmup_steps, round((1 - config.decay_share) * config.num_steps))
    progress = max(0, step - decay_from) / max(1, config.num_steps - 1 - decay_from)
    share = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * share


def train(
    state: TrainState,
    config: OptimConfig,
    batches_for_step: Callable[[int], Sequence[Batch]],
    *,
    validate: Callable[[], dict[str, float]] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    checkpoints: Checkpoints | None = None,
    measure: Callable[[float], dict[str, float]] | None = None,
) -> list[dict[str, float]]:
    """Run from `state.step` until the training has made `config.num_steps` steps.

    Args:
        state: changed in place.
        config: see `OptimConfig`.
        batches_for_step: this worker's batches of a step, whose gradients are averaged; must depend only on the step
            and the worker's rank. Every worker has the same number of batches.
        validate: returns figures of the model, which then has its averaged weights. Pass it on all workers, so that
            they stay synchronised.
        on_log: called with each new row of the curve; pass it on the first worker only.
        checkpoints: where to save the state; pass it on all workers.
        measure: returns figures of the steps since its last call, for the curve; called with their seconds.

    Returns:
        The whole curve, including the rows of earlier runs. Losses are means over the batches of all workers.

    Raises:
        TrainingDiverged: losses or gradients of more than `max_skips` steps are not finite; the weights are still those
            before that step.
    """
    started, wait_s, stall_s, steps_s, watch = time.perf_counter(), 0.0, 0.0, [], PeakWatch()
    if validate is not None and not state.curve:
        _judge_start(state, validate, on_log, checkpoints)
    last_step = state.first_step + config.num_steps
    while state.step < last_step:
        asked = time.perf_counter()
        batches = batches_for_step(state.step)
        wait_s += time.perf_counter() - asked
        row = _train_step(state, config, batches)
        steps_s.append(time.perf_counter() - asked)
        last = state.step == last_step
        figures = validated(state, validate) if validate and (last or _due(state.step, config.val_every)) else {}
        row |= figures
        is_best = _note_best(state, figures)
        if last or figures or "skipped" in row or _due(state.step, config.log_every):
            times = {"elapsed_s": time.perf_counter() - started, "loader_wait_s": wait_s, "checkpoint_stall_s": stall_s}
            row |= times | {"step_s": sum(steps_s) / len(steps_s), "peak_gb": peak_gb()}
            watch.note(state.step, row["peak_gb"])
            _record(state, row | (measure(sum(steps_s)) if measure else {}), on_log)
            steps_s.clear()
        if checkpoints and (last or is_best or _due(state.step, config.checkpoint_every)):
            stall_s += checkpoints.save(state, best=state.best[0] if state.best else None)
    if checkpoints:
        checkpoints.wait()
    if validate is not None and state.best and state.best[0] == state.first_step:
        LOG.warning(
            "the best validation is that before the first step: this training made the model worse, and the model is "
            "that before it"
        )
    return state.curve


def _judge_start(
    state: TrainState,
    validate: Callable[[], dict[str, float]],
    on_log: Callable[[dict[str, float]], None] | None,
    checkpoints: Checkpoints | None,
) -> None:
    """Validate the weights before the first step and save them: they are the model if no later step is better."""
    figures = validated(state, validate)
    state.untrained = state.untrained or figures
    _note_best(state, figures)
    _record(state, {"step": state.step, **figures}, on_log)
    if checkpoints:
        checkpoints.save(state, best=state.step)


def _train_step(state: TrainState, config: OptimConfig, batches: Sequence[Batch]) -> dict[str, float]:
    """Do one optimiser step, or skip it if its numbers are not finite; returns its row of the curve."""
    lr = learning_rate(config, state.step - state.first_step)
    for group in state.param_groups():
        group["lr"] = lr * group.get("lr_scale", 1)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    losses, suspects = _backward(state.objective, batches)
    figures = dict(zip(losses, mean_over_ranks(torch.stack(list(losses.values()))).tolist(), strict=True))
    figures |= _clip(state, config.grad_clip)
    if reason := not_finite(figures):
        everything = [sample for batch in batches for sample in batch.ids]
        ids = everything if math.isfinite(figures["loss"]) else suspects
        note_skip(state.skipped, reason, state.step + 1, ids, config.max_skips)
        state.step += 1
        return {"step": state.step, "lr": lr, "skipped": len(state.skipped)}
    for optimizer in state.optimizers:
        optimizer.step()
    state.ema.update(unwrapped(state.objective))
    state.step += 1
    return {"step": state.step, "loss": figures["loss"], "lr": lr, "grad_norm": figures["grad_norm"]} | figures


def _clip(state: TrainState, limit: float) -> dict[str, float]:
    """Scale the gradients of the model, and of a discriminator, down to the norm `limit` each; their norms before."""
    groups = state.param_groups()
    sides = {
        "grad_norm": [weight for group in groups if "lr_scale" not in group for weight in group["params"]],
        "grad_norm_discriminator": [weight for group in groups if "lr_scale" in group for weight in group["params"]],
    }
    norms = {}
    for name, weights in sides.items():
        if any(weight.grad is not None for weight in weights):
            norm = nn.utils.clip_grad_norm_(weights, limit)
            norms[name] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return norms


def _backward(objective: nn.Module, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], list[str]]:
    """Compute the gradient of the mean loss of this worker's batches.

    Returns:
        Mean of "loss" and of its parts, and the samples of batches whose loss is not finite.
    """
    rows: list[dict[str, Tensor]] = []
    for number, batch in enumerate(batches, 1):
        with accumulating(objective, last=number == len(batches)):
            loss, parts = objective(*batch.args)
            (loss * batch.weight / len(batches)).backward()
        rows.append({"loss": loss.detach()} | parts)
    weighted = [(row, batch.weight) for row, batch in zip(rows, batches, strict=True)]
    means = {name: torch.stack([row[name].float() * weight for row, weight in weighted]).mean() for name in rows[0]}
    finite = torch.stack([row["loss"] for row in rows]).isfinite().tolist()
    return means, [sample for batch, sound in zip(batches, finite, strict=True) if not sound for sample in batch.ids]


def validated(state: TrainState, validate: Callable[[], dict[str, float]]) -> dict[str, float]:
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


def _note_best(state: TrainState, figures: Mapping[str, float]) -> bool:
    """Record a validation result if it is the best so far; returns whether it is."""
    figure = next((figures[name] for name in JUDGED if name in figures), None)
    if figure is None or (state.best and figure >= state.best[1]):
        return False
    state.best = state.step, figure
    return True


def _record(state: TrainState, row: dict[str, float], on_log: Callable[[dict[str, float]], None] | None) -> None:
    state.curve.append(row)
    if on_log is not None:
        on_log(row)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
