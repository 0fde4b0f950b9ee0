"""Memory that the released transformers need while sampling: a straightforward implementation (`baseline.py`) and ours.

    uv run python benchmarks/sampling_memory.py     # about a minute; no GPU, and nothing is computed

The real code runs on tensors without data (`pyramid_model/generate/peak_memory.py`): the last unit of a clip at the
finest stage, with guidance, in bfloat16. The figures exclude the weights and memory that the allocator reserves.
"""

from __future__ import annotations

from functools import partial

import torch
from baseline import Habits, Straightforward
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pyramid_model.config import DiTConfig, MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.dit.packing import Size
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.reuse import MAX_BYTES, HistoryReuse
from pyramid_model.generate.peak_memory import peak_bytes
from pyramid_model.text import MAX_TOKENS, TextFeatures

CLIPS: dict[str, Size] = {"384x640, 5 s": (16, 48, 80), "768x1280, 5 s": (16, 96, 160), "768x1280, 10 s": (31, 96, 160)}
PYRAMID, ROWS, GIB = PyramidConfig(), 2, 2**30


def main() -> None:
    """Print one line for each model and clip."""
    columns = ("straightforward", "ours, nothing kept", "ours", "ratio")
    table = Table("peak besides the weights, GiB", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, config in (("miniFLUX", MiniFluxConfig()), ("MMDiT", MMDiTConfig())):
        for clip, size in CLIPS.items():
            plain, forgetful, ours = (peak / GIB for peak in peaks(config, size))
            table.add_row(f"{name}, {clip}", f"{plain:.2f}", f"{forgetful:.2f}", f"{ours:.2f}", f"{plain / ours:.2f}")
    console = Console(width=110)
    console.print(table)
    console.print(f"ours keeps up to {MAX_BYTES / GIB:g} GiB of keys and values from unit to unit (`HistoryReuse`)")


@torch.no_grad()
def peaks(config: DiTConfig, size: Size) -> tuple[int, int, int]:
    """Peak bytes of the last call of a clip: straightforward, ours without KV cache, ours."""
    with (mode := FakeTensorMode(allow_non_fake_inputs=True)):
        dit = build(config)
        embeds, pooled = (
            torch.zeros(ROWS, n, dtype=torch.bfloat16) for n in (MAX_TOKENS * config.text_dim, config.pooled_dim)
        )
        clips, timestep = last_column(config, size), torch.zeros(ROWS, dtype=torch.bfloat16)
    mask = torch.ones(
        ROWS, MAX_TOKENS, dtype=torch.bool
    )  # the layout of the tokens depends on its values, so it must have data
    text = TextFeatures(embeds.unflatten(1, (MAX_TOKENS, -1)), mask, pooled)
    assert text.lengths == (MAX_TOKENS,) * ROWS
    with mode:
        plain = peak_bytes(partial(Straightforward(dit, Habits()), [clips], timestep, text))
        forgetful = peak_bytes(partial(_call, HistoryReuse(dit, max_bytes=0), clips, timestep, text))
        ours = peak_bytes(partial(_whole_stage, HistoryReuse(dit), clips, timestep, text))
    return plain, forgetful, ours


def build(config: DiTConfig) -> MiniFlux | MMDiT:
    """The transformer with weights in bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        dit = MiniFlux(config) if isinstance(config, MiniFluxConfig) else MMDiT(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return dit.eval()


def last_column(config: DiTConfig, size: Size) -> list[Tensor]:
    """History and noisy clip of the last unit at the finest stage."""
    latents = torch.zeros(ROWS, config.latent_channels, *size, dtype=torch.bfloat16)
    past = latent_pyramid(latents[:, :, :-1], PYRAMID.num_stages)
    stage = PYRAMID.num_stages - 1
    return [*history_clips(past, stage, size[0] - 1, PYRAMID.frames_per_unit), latents[:, :, -1:]]


def _call(dit: HistoryReuse, clips: list[Tensor], timestep: Tensor, text: TextFeatures) -> Tensor:
    return dit.velocity(clips, timestep, text, PYRAMID.num_stages - 1, 0, 1)


def _whole_stage(dit: HistoryReuse, clips: list[Tensor], timestep: Tensor, text: TextFeatures) -> None:
    """All ten steps of a stage, so that the KV cache has its full size."""
    for step in range(10):
        dit.velocity(clips, timestep, text, PYRAMID.num_stages - 1, step, 10)


if __name__ == "__main__":
    main()
