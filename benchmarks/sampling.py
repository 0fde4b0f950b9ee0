"""Time of sampling, item by item: a straightforward implementation (`baseline.py`), ours, and their ratio.

    uv run python benchmarks/sampling.py            # about eight minutes on one thread
    uv run python benchmarks/sampling.py --quick    # fewer repeats and the tiny clip alone: about 20 seconds

There are two clips: a tiny one, where Python overhead dominates, and one with the tokens of 768x1280 px and a narrow
model, where attention over many tokens dominates. Runs of both sides of an item alternate; figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from baseline import NONE, Habits, LoopNoise, Straightforward, padded, plain_convolutions, sample
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from pyramid_model.config import MiniFluxConfig, PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.packing import Size
from pyramid_model.dit.transformer import size_of
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.flow.sampler import Sampling, sample_video
from pyramid_model.text import MAX_TOKENS, TextFeatures
from pyramid_model.train.flops import Flops, Reuse, call_flops, generation_flops
from pyramid_model.vae.autoencoder import CausalVideoVAE

PYRAMID = PyramidConfig()
NUM_TEXT, NUM_NEGATIVE = 24, 12  # number of tokens of a caption of one sentence, and of a short negative prompt
AGREE = 1e-4
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Clip:
    """A clip to sample.

    name: label in the output. config: config of the DiT. size: t, h, w in latents. first_steps, steps: steps of each
    stage for the first and for later units. vae: config of the VAE, if the clip is also decoded.
    """

    name: str
    config: MiniFluxConfig
    size: Size
    first_steps: tuple[int, ...]
    steps: tuple[int, ...]
    vae: VAEConfig | None = None

    @property
    def sampling(self) -> Sampling:
        """Settings of the sampler; guidance is on in all units."""
        return Sampling(PYRAMID, self.size, self.first_steps, self.steps, [7.0] + [5.0] * (self.size[0] - 1))


SMALL = {"latent_channels": 4, "num_heads": 2, "text_dim": 20, "pooled_dim": 24}
STACK = VAEStackConfig(channels=(6, 6, 12, 12), layers=(1, 1, 1, 1), norm_groups=3)
TINY = Clip(
    "tiny: 64x128 px, 5 units",
    MiniFluxConfig(**SMALL, head_dim=16, rope_axes=(4, 6, 6), num_double_blocks=2, num_single_blocks=2),
    size=(5, 8, 16),
    first_steps=(3, 2, 2),
    steps=(2, 2, 3),
    vae=VAEConfig(latent_channels=4, encoder=STACK, decoder=STACK),
)
WIDE = Clip(
    "768x1280 px, 6 units, narrow model",
    MiniFluxConfig(**SMALL | {"latent_channels": 16}, head_dim=64, num_double_blocks=1, num_single_blocks=1),
    size=(6, 96, 160),
    first_steps=(2, 2, 2),
    steps=(2, 2, 2),
)


@dataclass(frozen=True)
class Item:
    """Two computations with the same result. flops: operations of each, if they are known."""

    name: str
    straightforward: Run
    ours: Run
    flops: tuple[Flops, Flops] | None = None


@dataclass(frozen=True)
class Times:
    """Medians of one side, seconds."""

    wall: float
    cpu: float


class Bench:
    """A model with random weights and its inputs for the last unit of a clip."""

    def __init__(self, clip: Clip):
        self.clip = clip
        generator = Generator().manual_seed(0)
        self.dit = MiniFlux(clip.config).eval()
        for parameter in self.dit.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
        self.latents = torch.randn(1, clip.config.latent_channels, *clip.size, generator=generator)
        self.text, self.negative = (self.prompt(n, generator) for n in (NUM_TEXT, NUM_NEGATIVE))
        self.long = self.prompt(MAX_TOKENS, generator)
        self.vae = CausalVideoVAE(clip.vae).eval() if clip.vae else None

    def prompt(self, num_tokens: int, generator: Generator) -> TextFeatures:
        """Features of one prompt without padding."""
        config = self.clip.config
        embeds = torch.randn(1, num_tokens, config.text_dim, generator=generator)
        pooled = torch.randn(1, config.pooled_dim, generator=generator)
        return TextFeatures(embeds, torch.ones(1, num_tokens, dtype=torch.bool), pooled)

    def column(self, stage: int) -> list[Tensor]:
        """History and noisy clip of the last unit at a stage."""
        unit = self.clip.size[0] - 1
        pyramid = latent_pyramid(self.latents, PYRAMID.num_stages)
        past = latent_pyramid(self.latents[:, :, :unit], PYRAMID.num_stages)
        return [*history_clips(past, stage, unit, PYRAMID.frames_per_unit), pyramid[stage][:, :, unit:]]

    def call(self, dit: Callable[..., list[Tensor]], text: TextFeatures, stage: int = -1) -> Run:
        """One call of the model with all rows of the text."""
        rows = text.mask.shape[0]
        column = [clip.expand(rows, -1, -1, -1, -1) for clip in self.column(stage % PYRAMID.num_stages)]
        return lambda: dit([column], torch.full((rows,), 400.0), text)[0]

    def flops(self, text: TextFeatures, stage: int = -1, dense: bool = False) -> Flops:
        """Operations of `call`."""
        column = [size_of(clip) for clip in self.column(stage % PYRAMID.num_stages)]
        return call_flops(self.clip.config, [column], text.mask.shape[1], text.mask.shape[0], dense)

    def sample(self, straightforward: bool, reuse: HistoryReuse | None = None) -> Tensor:
        """Latents of a whole clip, from the straightforward implementation or ours."""
        clip, noise = self.clip, (LoopNoise if straightforward else Noise)(Generator().manual_seed(0))
        if straightforward:
            return sample(Straightforward(self.dit, Habits()), self.text, self.negative, clip.sampling, noise)
        return sample_video(self.dit, self.text, self.negative, clip.sampling, noise, reuse=reuse)

    def frames(self, straightforward: bool) -> Tensor:
        """Sample and decode a whole clip: with window 1 as published, or with the window of a request."""
        assert self.vae is not None
        latents = self.sample(straightforward)
        with plain_convolutions() if straightforward else contextlib.nullcontext():
            return self.vae.decode(latents, window=1 if straightforward else 2)


def items(bench: Bench) -> list[Item]:
    """Items to measure: single habits in otherwise equal code, then calls and the whole clip as users run them."""
    return [*habits(bench), *as_users_call(bench)]


def habits(bench: Bench) -> list[Item]:
    """Items for one habit each. Both sides of the DiT's items are `Straightforward`, with and without the habit."""
    clip, text, none = bench.clip, bench.text, Straightforward(bench.dit, NONE)
    without = bench.call(none, text)
    shape = (1, clip.config.latent_channels, 1, *clip.size[1:])
    looped, at_once = LoopNoise(Generator()), Noise(Generator())

    def one_habit(**habit: bool) -> Run:
        return bench.call(Straightforward(bench.dit, Habits(**(vars(NONE) | habit))), text)

    return [
        Item(
            "jump noise, last stage: a draw a block | in one",
            lambda: looped.block(*shape, gamma=PYRAMID.gamma),
            lambda: at_once.block(*shape, gamma=PYRAMID.gamma),
        ),
        Item(
            "attention: one dense mask | frame by frame",
            one_habit(dense_mask=True),
            without,
            (bench.flops(text, dense=True), bench.flops(text)),
        ),
        Item(
            f"text tokens: {MAX_TOKENS} | {NUM_TEXT}",
            bench.call(none, bench.long),
            without,
            (bench.flops(bench.long), bench.flops(text)),
        ),
        Item("positions, rotations: each call | once", one_habit(new_layout=True), without),
        Item("modulations: a token | broadcast", one_habit(wide_modulation=True), without),
        Item("rotation: real products | complex", one_habit(real_rotation=True), without),
    ]


def as_users_call(bench: Bench) -> list[Item]:
    """Items that compare the whole straightforward implementation with ours."""
    clip, both = bench.clip, bench.negative.concat(bench.text)
    plain, long = Straightforward(bench.dit, Habits()), padded(bench.negative).concat(padded(bench.text))
    one_by_one = [bench.call(bench.dit, text) for text in (bench.negative, bench.text)]
    arguments = (clip.config, clip.sampling)
    num_text = max(NUM_TEXT, NUM_NEGATIVE)
    frames = (partial(bench.frames, straightforward) for straightforward in (True, False))
    reused = generation_flops(*arguments, num_text=num_text, reuse=Reuse(across_units=True))
    return [
        *(
            Item(
                f"a call at stage {stage}, last unit, guided",
                bench.call(plain, long, stage),
                bench.call(bench.dit, both, stage),
                (bench.flops(long, stage, dense=True), bench.flops(both, stage)),
            )
            for stage in range(PYRAMID.num_stages)
        ),
        Item(
            "guidance, ours: two calls | one batch",
            lambda: torch.cat([call() for call in one_by_one]),
            bench.call(bench.dit, both),
            (bench.flops(bench.negative) + bench.flops(bench.text), bench.flops(both)),
        ),
        Item(
            "history between units, ours: computed again | kept",
            lambda: bench.sample(straightforward=False, reuse=HistoryReuse(bench.dit, max_bytes=0)),
            lambda: bench.sample(straightforward=False),
            (generation_flops(*arguments, num_text=num_text), reused),
        ),
        Item(
            "a whole clip, guided",
            lambda: bench.sample(straightforward=True),
            lambda: bench.sample(straightforward=False),
            (generation_flops(*arguments, num_text=MAX_TOKENS, dense=True), reused),
        ),
        *([Item("a whole clip and its frames", *frames)] if bench.vae else []),
    ]


@torch.no_grad()
def measure(item: Item, repeats: int, budget_s: float) -> tuple[Times, Times]:
    """Times of both sides in alternating runs: `repeats` runs, and more within the budget. The first one warms up."""
    sides = (item.straightforward, item.ours)
    both_times: tuple[list[Times], list[Times]] = ([], [])
    started = time.perf_counter()
    while len(both_times[0]) < repeats or (time.perf_counter() - started < budget_s and len(both_times[0]) < 200):
        for run, times in zip(sides, both_times, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times.append(Times(time.perf_counter() - wall, time.process_time() - cpu))
    first, second = (
        Times(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times)) for times in both_times
    )
    return first, second


@torch.no_grad()
def largest_difference(bench: Bench) -> float:
    """Largest difference between straightforward output and ours, over a guided call at each stage of the last unit."""
    plain, both = Straightforward(bench.dit, Habits()), bench.negative.concat(bench.text)
    sides = ((plain, padded(bench.negative).concat(padded(bench.text))), (bench.dit, both))
    calls = [[bench.call(dit, text, stage)() for dit, text in sides] for stage in range(PYRAMID.num_stages)]
    return max(float((straightforward - ours).abs().max()) for straightforward, ours in calls)


def table(bench: Bench, repeats: int, budget_s: float) -> Table:
    """Table with one line for each item."""
    columns = ["straightforward s", "ours s", "ratio", "CPU s", "ours CPU s", "CPU ratio", "operations ratio"]
    out = Table("item", *columns, title=bench.clip.name)
    for column in out.columns[1:]:
        column.justify = "right"
    for item in items(bench):
        before, after = measure(item, repeats, budget_s)
        operations = f"{item.flops[0].total / item.flops[1].total:.2f}" if item.flops else ""
        figures = (
            *(f"{before.wall:.4f}", f"{after.wall:.4f}", f"{before.wall / after.wall:.2f}"),
            *(f"{before.cpu:.4f}", f"{after.cpu:.4f}", f"{before.cpu / after.cpu:.2f}"),
        )
        out.add_row(item.name, *figures, operations)
    return out


def main() -> None:
    """Parse the command line, check that both implementations agree, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, and only the tiny clip")
    options = parser.parse_args()
    console = Console(width=170 if not sys.stdout.isatty() else None)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, load {load}, "
        f"torch {torch.__version__}\n",
        highlight=False,
    )
    for clip in (TINY,) if options.quick else (TINY, WIDE):
        bench = Bench(clip)
        difference = largest_difference(bench)
        console.print(f"{clip.name}: the two ways differ by {difference:.1e}; allowed {AGREE:g}", highlight=False)
        if not difference < AGREE:
            sys.exit("the two ways do not compute the same: a comparison of their times means nothing")
        console.print(table(bench, *((3, 0.5) if options.quick else (2, 4.0))))


if __name__ == "__main__":
    main()
