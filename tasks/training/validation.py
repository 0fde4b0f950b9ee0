"""Validation loss of a DiT over latents of several shapes, and of what it is held against."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyramid_model.config import PyramidConfig
from pyramid_model.train.config import DiTLossConfig
from tasks.training.pair_columns import Pairs
from tasks.training.pairs import LoadedPairs, PairSource, load_null_text, load_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from pyramid_model.dit.transformer import DiT
    from pyramid_model.metrics.linear_predictor import LinearPredictor


MAX_ROLLED_OUT = 4
MAX_FITTED = 64  # training clips on which the linear predictor is fitted, evenly spaced


def val_losses(
    dit: "DiT | LinearPredictor",
    held_out: LoadedPairs,
    pyramid: PyramidConfig,
    loss: DiTLossConfig,
    texts: "Sequence[tuple[Tensor, Tensor]] | None" = None,
) -> dict[str, float]:
    """`val_loss` and its parts, as means over all elements of the latents; every call uses the same noise.

    texts: features to use in place of the clips' own.
    """
    from pyramid_model.train.dit_validation import validate_dit

    texts = texts or held_out.texts
    members: dict[tuple[int, ...], list[int]] = {}
    for position, shape in enumerate(held_out.shapes):
        members.setdefault(shape, []).append(position)
    totals: dict[str, float] = {}
    for group in members.values():
        latents, of_group = [held_out.latents[i] for i in group], [texts[i] for i in group]
        for name, value in validate_dit(dit, latents, of_group, pyramid, loss).items():
            totals[name] = totals.get(name, 0.0) + value * len(group) * math.prod(latents[0].shape)
    num_elements = sum(map(math.prod, held_out.shapes))
    return {name: total / num_elements for name, total in totals.items()}


def rollout_curve(dit: "DiT", held_out: LoadedPairs, pyramid: PyramidConfig) -> dict[str, float]:
    """See `rollout_gap`: of up to `MAX_ROLLED_OUT` of the longest held-out clips of one shape."""
    from pyramid_model.train.dit_validation import rollout_gap

    longest = max(held_out.shapes, key=lambda shape: shape[1])
    chosen = [position for position, shape in enumerate(held_out.shapes) if shape == longest][:MAX_ROLLED_OUT]
    return rollout_gap(dit, [held_out.latents[i] for i in chosen], [held_out.texts[i] for i in chosen], pyramid)


def val_baselines(
    dit: "DiT",
    source: PairSource,
    train: Pairs,
    held_out: LoadedPairs,
    pyramid: PyramidConfig,
    loss: DiTLossConfig,
) -> dict[str, float]:
    """Losses on the same held-out clips and noise that say what the DiT has learnt.

    Returns:
        `val_loss_linear`: of the linear predictor fitted to training clips. `val_loss_no_text`: of the DiT with the
        empty text. `val_loss_shuffled_text`: of the DiT with captions of other clips; left out if all are the same.
    """
    from pyramid_model.metrics.linear_predictor import LinearPredictor
    from pyramid_model.train.dit_validation import units_to_validate

    fitted = load_pairs(source, train[:: max(1, -(-len(train) // MAX_FITTED))]).latents
    frames = {shape[1] for shape in held_out.shapes}
    units = {unit for number in frames for unit in units_to_validate(number, pyramid, loss)}
    device = next(dit.parameters()).device
    linear = LinearPredictor.fit(fitted, pyramid, sorted(filter(None, units)) or None).to(device)
    losses = {"linear": val_losses(linear, held_out, pyramid, loss)}
    no_text = [load_null_text(source)] * len(held_out.texts)
    losses["no_text"] = val_losses(dit, held_out, pyramid, loss, no_text)
    if others := shuffled([pair.text for pair in held_out.pairs]):
        texts = [held_out.texts[other] for other in others]
        losses["shuffled_text"] = val_losses(dit, held_out, pyramid, loss, texts)
    return {f"val_loss_{name}": figures["val_loss"] for name, figures in losses.items()}


def shuffled(captions: Sequence[str]) -> list[int]:
    """For each clip the position of the next, in a circle, with another caption; [] if all captions are the same."""
    if len(set(captions)) < 2:
        return []
    count = len(captions)
    return [
        next((i + step) % count for step in range(1, count) if captions[(i + step) % count] != captions[i])
        for i in range(count)
    ]
