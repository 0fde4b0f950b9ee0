"""Division of the work of sampling one batch of clips among ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyramid_model.dit.transformer import DiT
from pyramid_model.parallel.guidance import guidance_parallel
from pyramid_model.parallel.sequence import sequence_parallel


@dataclass(frozen=True)
class Layout:
    """Number of ranks for each kind of parallelism; the product is the number of ranks that sample together.

    Consecutive ranks form a Ulysses group, consecutive Ulysses groups form the rings, and the two halves of guidance
    come last: rank = (guidance index * ring + ring index) * ulysses + ulysses index.

    guidance: 2 if one half of the ranks predicts without the prompt and the other with it, else 1.
    ulysses: ranks that divide the attention heads among them.
    ring: ranks that pass keys and values around.
    """

    guidance: int
    ulysses: int
    ring: int


def best_layout(num_ranks: int, num_heads: int, guided: bool = True) -> Layout:
    """The layout with the least communication.

    Guidance is used first, because it sends velocities only; then Ulysses, on as many ranks as divide
    the heads; then the ring.

    Args:
        num_ranks: ranks that sample together.
        num_heads: attention heads of the transformer.
        guided: whether clips are sampled with guidance.
    """
    guidance = 2 if guided and num_ranks % 2 == 0 else 1
    sequence = num_ranks // guidance
    ulysses = math.gcd(sequence, num_heads)
    return Layout(guidance, ulysses, sequence // ulysses)


def share_sampling(dit: DiT, layout: Layout) -> None:
    """Let ranks sample together. A collective call of all ranks.

    Afterwards every rank runs the same sampler with the same seeds, and gets the whole clips. Noise is drawn on the CPU
    from seeds, so all ranks draw the same noise and none is sent.

    Args:
        dit: with the same weights on every rank; changed in place, see `sequence_parallel` and `guidance_parallel`.
        layout: of consecutive ranks. The number of ranks may be a multiple of the layout's size; each set of that
            many consecutive ranks then samples its own clips.

    Raises:
        ValueError: the layout does not match the number of ranks or the number of heads.
    """
    if layout.ulysses * layout.ring > 1:
        sequence_parallel(dit, layout.ulysses, layout.ring)
    if layout.guidance > 1:
        guidance_parallel(dit, distance=layout.ulysses * layout.ring)
