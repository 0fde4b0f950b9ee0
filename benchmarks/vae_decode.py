"""Cost of decoding a clip whole, in windows of time, and in tiles: operations, seconds and memory.

    uv run python benchmarks/vae_decode.py                  # all tables, minutes on an idle machine
    uv run python benchmarks/vae_decode.py --skip-released  # only the tables that are timed

The first table times a narrow VAE on the CPU. Compare its ratios to the first row; they are ratios of process CPU time,
since wall time depends on other work on the machine. The last table has operations and memory of the released VAE at
768p in bfloat16, from the real code on tensors without data.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from pyramid_model.config import VAEConfig, VAEStackConfig
from pyramid_model.generate.peak_memory import peak_bytes
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.conv import causal_conv3d, store_by_frame
from pyramid_model.vae.flops import decode_flops
from pyramid_model.vae.pixels import uint8_pixels
from pyramid_model.vae.tiling import Tile

STACK = {"channels": (8, 16, 32, 32), "norm_groups": 4}
NARROW = VAEConfig(
    encoder=VAEStackConfig(**STACK, layers=(2, 2, 2, 2)), decoder=VAEStackConfig(**STACK, layers=(3, 3, 3, 3))
)
SMALL = (17, 48, 80)  # frames, height, width: a 16th of 768p, so that tiles of 32 px stand for those of 512
SMALL_TILES, RELEASED_TILES = (32,), (256, 512)
RELEASED, HEIGHT, WIDTH, LENGTHS = VAEConfig(), 768, 1280, (121, 241)
REPEATS = 2

Way = tuple[str, int | None, Tile | None]  # name, latent frames at a time, tile


def ways(height: int, width: int, tiles: tuple[int, ...]) -> list[Way]:
    """Ways to decode: the published pipeline's square tiles, and tiles that divide the picture; they may be equal."""
    rows: list[Way] = [("whole", None, None), ("window 2", 2, None), ("window 1", 1, None)]
    for window, largest in zip((1, 2), tiles, strict=False):
        for kind, tile in (("", Tile(largest, largest)), ("fitting ", Tile.fitting(height, width, largest))):
            if (window, tile) not in [row[1:] for row in rows]:
                rows.append((f"window {window}, {kind}tiles of {tile.height}x{tile.width} px", window, tile))
    return rows


def streamed(vae: CausalVideoVAE, latents: Tensor) -> None:
    """Decode one latent frame at a time to uint8 and drop it, as when frames are streamed to a file."""
    for part in vae.decode_stream(latents.split(1, dim=2)):
        uint8_pixels(part)


def cpu_seconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Least CPU seconds of each call; the calls alternate, so that other work slows all of them equally."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for own, call in zip(seconds, calls, strict=True):
            started = time.process_time()
            call()
            own.append(time.process_time() - started)
    return [min(own) for own in seconds]


def narrow_table() -> Table:
    """Table of the ways to decode with the narrow VAE."""
    torch.manual_seed(0)
    vae = CausalVideoVAE(NARROW).eval()
    num_frames, height, width = SMALL
    latents = torch.randn(1, NARROW.latent_channels, 1 + (num_frames - 1) // 8, height // 8, width // 8)
    rows = ways(height, width, SMALL_TILES)
    calls = [lambda way=way: vae.decode(latents, way[1], tile=way[2]) for way in rows] + [
        lambda: streamed(vae, latents)
    ]
    flops = [decode_flops(NARROW, *SMALL, way[2]) for way in rows]
    seconds, peaks = cpu_seconds(calls), [peak_bytes(call) for call in calls]
    table = _table(
        "way", "FLOPs, GF", "ratio", "CPU, s", "ratio", "peak, MB", "ratio",
        title=f"narrow VAE {NARROW.decoder.channels}, {num_frames} frames of {height}x{width} px, float32, CPU",
    )  # fmt: skip
    names = [way[0] for way in rows] + ["window 1, streamed to uint8"]
    for name, flop, second, peak in zip(names, [*flops, flops[0]], seconds, peaks, strict=True):
        table.add_row(
            *(name, f"{flop / 1e9:.1f}", f"{flop / flops[0]:.2f}", f"{second:.2f}", f"{second / seconds[0]:.2f}"),
            *(f"{peak / 1e6:.0f}", f"{peak / peaks[0]:.2f}"),
        )
    return table


def convolution_table() -> Table:
    """Table that compares a sum of 2-D convolutions with a 3-D convolution on the CPU."""
    table = _table("channels", "frames, px", "conv3d, CPU s", "by taps, CPU s", "ratio", title="one causal convolution")
    for channels, side in ((8, 64), (32, 32), (128, 16)):
        x, weight, bias = (
            torch.randn(1, channels, 8, side, side),
            torch.randn(channels, channels, 3, 3, 3),
            torch.zeros(channels),
        )
        stored = store_by_frame(x)
        dense, taps = cpu_seconds(
            [
                lambda x=x, weight=weight, bias=bias: F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), weight, bias),
                lambda x=stored, weight=weight, bias=bias: causal_conv3d(x, weight, bias, (1, 1, 1), num_zeros=2),
            ]
        )
        table.add_row(str(channels), f"8, {side}x{side}", f"{dense:.3f}", f"{taps:.3f}", f"{taps / dense:.2f}")
    return table


def released_table() -> Table:
    """Table of operations and peak memory of the released VAE at 768p, without the 0.7 GB of weights."""
    table = _table(
        *("way", "FLOPs, PF", "ratio", *(f"peak of {n} frames, GB" for n in LENGTHS)),
        title=f"released VAE, {HEIGHT}x{WIDTH} px, bfloat16, CUDA path; FLOPs of {LENGTHS[0]} frames",
    )
    torch.set_default_dtype(torch.bfloat16)
    with FakeTensorMode(), torch.device("cuda"):
        vae = CausalVideoVAE(RELEASED)
        whole = decode_flops(RELEASED, LENGTHS[0], HEIGHT, WIDTH)
        for name, window, tile in ways(HEIGHT, WIDTH, RELEASED_TILES):
            flops = decode_flops(RELEASED, LENGTHS[0], HEIGHT, WIDTH, tile)
            peaks = [released_peak(vae, n, window, tile) / 1e9 for n in LENGTHS]
            table.add_row(name, f"{flops / 1e15:.2f}", f"{flops / whole:.2f}", *(f"{peak:.1f}" for peak in peaks))
        peaks = [peak_bytes(lambda n=n: streamed(vae, _latents(n, HEIGHT, WIDTH))) / 1e9 for n in LENGTHS]
        table.add_row("window 1, streamed to uint8", f"{whole / 1e15:.2f}", "1.00", *(f"{p:.1f}" for p in peaks))
    torch.set_default_dtype(torch.float32)
    return table


def released_peak(vae: CausalVideoVAE, num_frames: int, window: int | None, tile: Tile | None) -> int:
    """Peak bytes of decoding. Tiles are decoded one by one, so only four are run, and the other frames are added."""
    latents = _latents(num_frames, HEIGHT, WIDTH)
    if tile is None:
        return peak_bytes(lambda: vae.decode(latents, window))
    height, width = (tile.height * 3 // 2, tile.width * 3 // 2)  # two tiles a side, three quarters of a tile each
    peak = peak_bytes(lambda: vae.decode(_latents(num_frames, height, width), window, tile=tile))
    columns = len(range(0, WIDTH, tile.width * 3 // 4))
    edges = (columns - 2) * tile.width * tile.height // 4  # part of each tile that is kept to blend with the next row
    return peak + num_frames * 3 * 2 * (HEIGHT * WIDTH - height * width + edges)


def _latents(num_frames: int, height: int, width: int) -> Tensor:
    return torch.empty(1, RELEASED.latent_channels, 1 + (num_frames - 1) // 8, height // 8, width // 8)


def _table(*columns: str, title: str) -> Table:
    table = Table(*columns, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


@torch.no_grad()
def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-released", action="store_true", help="do not compute the memory of the released VAE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=140 if not sys.stdout.isatty() else None)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{platform.machine()}, one thread, load {load}, PyTorch {torch.__version__}\n", highlight=False)
    console.print(convolution_table())
    console.print(narrow_table())
    if not options.skip_released:
        console.print(released_table())


if __name__ == "__main__":
    main()
