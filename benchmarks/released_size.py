"""Seconds, peak memory and MFU of sampling and decoding a clip with models of the released size and random weights.

    uv run python benchmarks/released_size.py --peak-tflops 989              # an H100 or H200; 384p, 5 s, miniFLUX
    uv run python benchmarks/released_size.py --peak-tflops 989 --clip 768p --model mmdit --compile
    uv run python benchmarks/released_size.py --tiny                         # a test of the script on a CPU

Each line changes one setting. Sampling is timed over whole clips, after a warm-up clip of two units.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyramid_model.config import DiTConfig, MiniFluxConfig, MMDiTConfig, PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.dit.packing import Size
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.reuse import MAX_BYTES, HistoryReuse
from pyramid_model.flow.sampler import Sampling, guidance_per_unit, sample_video
from pyramid_model.parallel.compiling import compile_blocks
from pyramid_model.text import TextFeatures
from pyramid_model.train.flops import Reuse, generation_flops, mfu
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.flops import decode_flops
from pyramid_model.vae.tiling import Tile

CLIPS: dict[str, Size] = {"384p": (16, 48, 80), "768p": (16, 96, 160), "768p-10s": (31, 96, 160), "tiny": (3, 8, 16)}
MODELS: dict[str, DiTConfig] = {"miniflux": MiniFluxConfig(), "mmdit": MMDiTConfig()}
TINY = MiniFluxConfig(num_heads=2, num_double_blocks=1, num_single_blocks=1, text_dim=32, pooled_dim=32)
TINY_STACK = VAEStackConfig(channels=(8, 8, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
PYRAMID, NUM_TEXT, NUM_NEGATIVE = PyramidConfig(), 32, 48
STEPS = ((20, 20, 20), (10, 10, 10))


@dataclass(frozen=True)
class Measured:
    """One run. peak_bytes: peak memory of the device with weights; 0 on a CPU, where it is not measured."""

    seconds: float
    peak_bytes: int


def main() -> None:
    """Parse the command line, build the models, print one table for the DiT and one for the VAE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", choices=list(CLIPS), default="384p")
    parser.add_argument("--model", choices=list(MODELS), default="miniflux")
    parser.add_argument(
        "--peak-tflops", type=float, default=0.0, help="peak TFLOP/s of the device in bfloat16, for the MFU"
    )
    parser.add_argument("--compile", action="store_true", help="also measure compiled blocks")
    parser.add_argument("--tiny", action="store_true", help="tiny models and a tiny clip")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip = "tiny" if options.tiny else options.clip
    console = Console(width=120)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    console.print(f"{name}, torch {torch.__version__}, bfloat16, {clip} {CLIPS[clip]} latents", highlight=False)
    config = TINY if options.tiny else MODELS[options.model]
    vae_config = VAEConfig(encoder=TINY_STACK, decoder=TINY_STACK) if options.tiny else VAEConfig()
    console.print(sampling_table(config, CLIPS[clip], device, options.peak_tflops * 1e12, options.compile))
    console.print(decoding_table(vae_config, CLIPS[clip], device, options.peak_tflops * 1e12))


@torch.no_grad()
def sampling_table(config: DiTConfig, size: Size, device: torch.device, peak_flops: float, compiled: bool) -> Table:
    """Table with one line for each use of the KV cache."""
    with device:
        torch.set_default_dtype(torch.bfloat16)
        dit = (MMDiT(config) if isinstance(config, MMDiTConfig) else MiniFlux(config)).eval()  # pyright: ignore
        torch.set_default_dtype(torch.float32)
    plenty = 2**40
    ways: list[tuple[str, HistoryReuse, Reuse]] = [
        ("history computed at every step", HistoryReuse(dit, max_bytes=0), Reuse()),
        (f"kept between units, {MAX_BYTES / 2**30:g} GiB (default)", HistoryReuse(dit), Reuse(True)),
        ("kept between units, all of it", HistoryReuse(dit, max_bytes=plenty), Reuse(True)),
        ("history every 5 steps (not exact)", HistoryReuse(dit, 5, plenty), Reuse(True, 5)),
    ]
    table = _table("sampling", "s", "peak GB", "PFLOP", "MFU")
    for repeat in ("", "compiled: ") if compiled else ("",):
        if repeat:
            compile_blocks(dit)
        run(dit, (2, *size[1:]), device, None)
        for name, reuse, counted in ways:
            reuse.kv_caches.clear()
            measured = measure(lambda reuse=reuse: run(dit, size, device, reuse), device)
            flops = generation_flops(config, sampling_of(size), NUM_NEGATIVE, reuse=counted).total
            _row(table, repeat + name, measured, flops, peak_flops)
            reuse.kv_caches.clear()
    return table


def run(dit: DiT, size: Size, device: torch.device, reuse: HistoryReuse | None) -> Tensor:
    """Sample one clip."""
    text, negative = (features(dit.config, n, device) for n in (NUM_TEXT, NUM_NEGATIVE))
    noise = Noise([torch.Generator().manual_seed(0)], device)
    return sample_video(dit, text, negative, sampling_of(size), noise, reuse=reuse)


def sampling_of(size: Size) -> Sampling:
    """The recommended settings for a clip of t, h, w latents."""
    return Sampling(PYRAMID, size, *STEPS, guidance_per_unit(7.0, 5.0, size[0]))


def features(config: DiTConfig, num_tokens: int, device: torch.device) -> TextFeatures:
    """Random features of one prompt."""
    embeds, pooled = torch.randn(1, num_tokens, config.text_dim), torch.randn(1, config.pooled_dim)
    return TextFeatures(embeds, torch.ones(1, num_tokens, dtype=torch.bool), pooled).to(device, torch.bfloat16)


@torch.no_grad()
def decoding_table(config: VAEConfig, size: Size, device: torch.device, peak_flops: float) -> Table:
    """Table with one line for each division of a clip for the decoder."""
    with device:
        vae = CausalVideoVAE(config).bfloat16().eval()
        latents = torch.randn(1, config.latent_channels, *size, dtype=torch.bfloat16)
    px = [config.space_factor * side for side in size[1:]]
    num_frames = 1 + config.time_factor * (size[0] - 1)
    side = max(64, max(px) // 3)
    ways = [(1, None), (2, None), (1, Tile(side // 32 * 32, side // 32 * 32)), (1, Tile.fitting(*px, side))]
    table = _table("decoding", "s", "peak GB", "PFLOP", "MFU")
    for window, tile in ways:
        name = f"window {window}, " + (f"tiles of {tile.height}x{tile.width} px" if tile else "whole pictures")
        measured = measure(lambda window=window, tile=tile: vae.decode(latents, window, tile=tile), device)
        _row(table, name, measured, decode_flops(config, num_frames, *px, tile), peak_flops)
    return table


def measure(call: Callable[[], object], device: torch.device) -> Measured:
    """Run once; on a GPU, wait until it has finished."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return Measured(seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)


def _table(*columns: str) -> Table:
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _row(table: Table, name: str, measured: Measured, flops: float, peak_flops: float) -> None:
    peak = f"{measured.peak_bytes / 1e9:.1f}" if measured.peak_bytes else ""
    share = f"{mfu(flops, measured.seconds, peak_flops):.1%}" if peak_flops else ""
    table.add_row(name, f"{measured.seconds:.2f}", peak, f"{flops / 1e15:.3g}", share)


if __name__ == "__main__":
    main()
