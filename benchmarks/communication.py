"""Bytes that a rank sends in one block, by layout of the ranks that share a 768p clip. Computed, not measured.

Ulysses: an all-to-all exchange of queries, keys and values, and one back of the attention output. Ring: keys and
values, including the KV cache, pass once around the ring. The figures are for bfloat16 with guidance (two rows for each
clip, or one if guidance is divided between ranks), and the last unit of 5 s at its finest stage.
"""

from __future__ import annotations

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from pyramid_model.parallel.layout import Layout, best_layout

BYTES = 2  # size of a bfloat16
FINE = (96 // 2) * (160 // 2)  # tokens of a frame of 768x1280 px at the finest of three resolutions
WHOLE = 128 + 13 * FINE // 16 + FINE // 4 + 2 * FINE  # text, history of the last of 16 units, its own frame
CACHED = 128 + 12 * FINE // 16  # text and frames that were at the coarsest resolution in the unit before


def sent(layout: Layout, dim: int, new: int, cached: int) -> float:
    """Bytes that a rank sends in one block.

    Args:
        layout: layout of the ranks.
        dim: width of a token.
        new: number of tokens that are computed.
        cached: number of tokens whose keys and values are in the KV cache.
    """
    rows, ulysses, ring = 2 / layout.guidance, layout.ulysses, layout.ring
    token = rows * dim * BYTES
    exchanged = 4 * new / (ulysses * ring) * token * (ulysses - 1) / ulysses
    passed = 2 * (new + cached) / ring * token / ulysses * (ring - 1)
    return exchanged + passed


def main() -> None:
    """Print one line for each model and layout."""
    print("| model | guidance x ulysses x ring | MiB a block, without KV cache | oldest frames in the KV cache |")
    print("|---|---|---|---|")
    for name, config in (("miniFLUX", MiniFluxConfig()), ("MMDiT (SD3)", MMDiTConfig())):
        layouts = [Layout(1, 2, 1), Layout(1, 1, 2), Layout(2, 1, 1), Layout(2, 2, 1), Layout(2, 1, 2), Layout(2, 1, 4)]
        for layout in dict.fromkeys([*layouts, *(best_layout(ranks, config.num_heads) for ranks in (4, 6, 8))]):
            figures = (
                sent(layout, config.dim, WHOLE, 0),
                sent(layout, config.dim, WHOLE - CACHED, CACHED),
            )
            print(
                f"| {name} | {layout.guidance} x {layout.ulysses} x {layout.ring} | "
                + " | ".join(f"{figure / 2**20:.0f}" for figure in figures)
                + " |"
            )


if __name__ == "__main__":
    main()
