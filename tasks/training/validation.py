"""Validation loss of a DiT over latents of several shapes."""

from typing import TYPE_CHECKING

from pyramid_model.config import PyramidConfig
from pyramid_model.train.config import DiTLossConfig
from tasks.training.pairs import LoadedPairs

if TYPE_CHECKING:
    from pyramid_model.dit.transformer import DiT


def val_losses(dit: "DiT", held_out: LoadedPairs, pyramid: PyramidConfig, loss: DiTLossConfig) -> dict[str, float]:
    """`val_loss` and its parts. All clips have the same weight, and every call uses the same noise."""
    from pyramid_model.train.dit_loss import validate_dit

    members: dict[tuple[int, ...], list[int]] = {}
    for position, shape in enumerate(held_out.shapes):
        members.setdefault(shape, []).append(position)
    totals: dict[str, float] = {}
    for group in members.values():
        latents, texts = [held_out.latents[i] for i in group], [held_out.texts[i] for i in group]
        for name, value in validate_dit(dit, latents, texts, pyramid, loss).items():
            totals[name] = totals.get(name, 0.0) + value * len(group)
    return {name: total / len(held_out.shapes) for name, total in totals.items()}
