"""Which ranks share what when they sample one batch of clips together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyramid_model.dit.transformer import DiT
from pyramid_model.parallel.guidance import guidance_parallel
from pyramid_model.parallel.sequence import sequence_parallel


@dataclass(frozen=True)
class Layout:
    """How many ranks share what. Neighbours deal heads; those rings of neighbours that predict the same follow.

    guidance: 2 where one half of the ranks predicts without the prompt and the other with it, else 1.
    ulysses: ranks that deal heads to each other.
    ring: ranks among which keys and values go round.
    """

    guidance: int
    ulysses: int
    ring: int


def best_layout(num_ranks: int, num_heads: int, guided: bool = True) -> Layout:
    """The layout that sends least: guidance first, which sends nothing but velocities, then Ulysses, then rings.

    Args:
        num_ranks: of all.
        num_heads: of the transformer.
        guided: whether clips are sampled with guidance.
    """
    guidance = 2 if guided and num_ranks % 2 == 0 else 1
    sequence = num_ranks // guidance
    ulysses = math.gcd(sequence, num_heads)
    return Layout(guidance, ulysses, sequence // ulysses)


def share_sampling(dit: DiT, layout: Layout) -> None:
    """Let ranks sample together: each then runs the same sampler with the same seeds, and gets the whole clips.

    Noise is drawn on the CPU from seeds, so the ranks draw the same and nobody sends any.

    Args:
        dit: with the same weights on every rank; changed in place, see `sequence_parallel` and `guidance_parallel`.
        layout: of neighbouring ranks. Where there are several times as many, each such neighbourhood has its own clips.

    Raises:
        ValueError: the layout does not fit the number of ranks, or the heads.
    """
    if layout.ulysses * layout.ring > 1:
        sequence_parallel(dit, layout.ulysses, layout.ring)
    if layout.guidance > 1:
        guidance_parallel(dit, apart=layout.ulysses * layout.ring)
