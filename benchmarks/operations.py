"""Operations of the released DiTs for a whole clip, for different uses of the KV cache. Computed, not measured; 3 s.

uv run python benchmarks/operations.py
"""

import sys

from rich.console import Console
from rich.table import Table

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.flow.sampler import Sampling
from pyramid_model.text import MAX_TOKENS
from pyramid_model.train.flops import Reuse, generation_flops

MODELS = {"miniFLUX": MiniFluxConfig(), "MMDiT (SD3)": MMDiTConfig()}
CLIPS = {"5 s, 768x1280 px": (16, 96, 160), "10 s, 768x1280 px": (31, 96, 160), "5 s, 384x640 px": (16, 48, 80)}
FIRST_STEPS, STEPS = (20, 20, 20), (10, 10, 10)
WAYS = {
    "one dense mask": {"dense": True},
    "only unmasked pairs": {},
    "oldest frames cached (exact)": {"reuse": Reuse(across_units=True)},
    "history every 5 steps": {"reuse": Reuse(refresh_every=5)},
    "history once a stage": {"reuse": Reuse(refresh_every=None)},
    "both": {"reuse": Reuse(across_units=True, refresh_every=None)},
}


def main() -> None:
    """Print PFLOP, and in brackets the ratio to one dense mask."""
    title = f"PFLOP of the DiT, steps {FIRST_STEPS} then {STEPS}, guided, {MAX_TOKENS} text tokens"
    out = Table("model", "clip", *WAYS, title=title)
    for column in out.columns[2:]:
        column.justify = "right"
    for model, config in MODELS.items():
        for clip, size in CLIPS.items():
            sampling = Sampling(PyramidConfig(), size, FIRST_STEPS, STEPS, [2.0] * size[0])
            counts = [generation_flops(config, sampling, MAX_TOKENS, **way).total / 1e15 for way in WAYS.values()]
            out.add_row(model, clip, *(f"{count:.2f} ({counts[0] / count:.2f}x)" for count in counts))
    Console(width=170 if not sys.stdout.isatty() else None).print(out)


if __name__ == "__main__":
    main()
