"""Bytes that a rank sends in one block, by how ranks share the tokens of a 768p clip. Counted, not measured.

Ulysses: a rank gives all others of its neighbours their heads of its queries, keys and values, and gets its tokens of
what was found. Ring: keys and values of a rank's heads, remembered ones included, go once round. bfloat16, guided (two
rows a clip; one, where guidance is on ranks of its own), the last unit of 5 s at its finest stage.
"""

from __future__ import annotations

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from pyramid_model.parallel.layout import Layout, best_layout

BYTES = 2  # of a bfloat16
FINE = (96 // 2) * (160 // 2)  # tokens of a frame of 768x1280 px at the finest of three resolutions
WHOLE = 128 + 13 * FINE // 16 + FINE // 4 + 2 * FINE  # text, history of the last of 16 units, its own frame
REMEMBERED = 128 + 12 * FINE // 16  # what the unit before it had at the coarsest resolution, too


def sent(layout: Layout, dim: int, new: int, remembered: int) -> float:
    """Bytes that a rank sends in one block.

    Args:
        layout: of the ranks.
        dim: width of a token.
        new: tokens that are computed.
        remembered: tokens whose keys and values are held from earlier calls.
    """
    rows, ulysses, ring = 2 / layout.guidance, layout.ulysses, layout.ring
    token = rows * dim * BYTES
    traded = 4 * new / (ulysses * ring) * token * (ulysses - 1) / ulysses
    passed = 2 * (new + remembered) / ring * token / ulysses * (ring - 1)
    return traded + passed


def main() -> None:
    """Print one line for each model and layout."""
    print("| model | guidance x ulysses x ring | MiB a block, nothing remembered | oldest frames remembered |")
    print("|---|---|---|---|")
    for name, config in (("miniFLUX", MiniFluxConfig()), ("MMDiT (SD3)", MMDiTConfig())):
        layouts = [Layout(1, 2, 1), Layout(1, 1, 2), Layout(2, 1, 1), Layout(2, 2, 1), Layout(2, 1, 2), Layout(2, 1, 4)]
        for layout in dict.fromkeys([*layouts, *(best_layout(ranks, config.num_heads) for ranks in (4, 6, 8))]):
            figures = (
                sent(layout, config.dim, WHOLE, 0),
                sent(layout, config.dim, WHOLE - REMEMBERED, REMEMBERED),
            )
            print(
                f"| {name} | {layout.guidance} x {layout.ulysses} x {layout.ring} | "
                + " | ".join(f"{figure / 2**20:.0f}" for figure in figures)
                + " |"
            )


if __name__ == "__main__":
    main()
