"""A plan for a memory limit: which models are offloaded, how many latents are decoded at a time, in which tiles."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch._subclasses import FakeTensorMode

from pyramid_model.config import PATCH, VAEConfig
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.flow.path import units_in
from pyramid_model.flow.sampler import OFF
from pyramid_model.generate.byte_sizes import format_bytes
from pyramid_model.generate.model_sizes import ModelSizes
from pyramid_model.generate.offload import Offload
from pyramid_model.generate.peak_memory import peak_bytes
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.text import MAX_TOKENS
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.tiling import Tile

SLACK = 1.1  # factor for the memory of kernels and of the allocator
DIT_WIDTHS = 15  # activation vectors (width of the DiT) per token at the peak; measured, and tested
TEXT_WIDTHS = 20  # the same for a text encoder
LATENT_COPIES = 8  # start, result and history of every latent, at all stages
TILE_SIDES = (1024, 768, 512, 384, 256, 192, 128)  # px; fewer tiles first
TILED_COPIES = 2  # copies of the clip's pixels: rows of tiles, and the joined clip


class Mode(NamedTuple):
    """A mode of offloading, and the models whose layers are copied to the device one at a time."""

    offload: Offload
    in_turn: tuple[str, ...]


# The text encoder runs once and the DiT hundreds of times, so the DiT's layers are offloaded last.
OFFLOAD_MODES = (
    Mode("none", ()),
    Mode("model", ()),
    Mode("sequential", ("text",)),
    Mode("sequential", ("text", "dit")),
)


class Decoding(NamedTuple):
    """How latents become frames. Fields as in `Plan`."""

    while_sampling: bool
    window: int
    tile: Tile | None


@dataclass(frozen=True)
class Workload:
    """What is generated together: its phases need memory.

    sizes: of the models. batch: clips generated together. num_given: frames that are encoded to start the clip.
    device: cuda, mps or cpu; models are offloaded only on cuda.
    """

    sizes: ModelSizes
    request: GenerationRequest
    batch: int = 1
    num_given: int = 0
    device: str = "cuda"


@dataclass(frozen=True)
class Plan:
    """How the memory is used for one batch.

    offload: mode of offloading, as in `Placement`.
    in_turn: models whose layers are copied to the device one at a time (sequential offloading).
    decode_while_sampling: units are decoded while later units are sampled.
    window: latent frames decoded at a time. tile: px; None: frames are decoded whole.
    peaks: peak bytes of each phase. limit: bytes that no peak may exceed.
    """

    offload: Offload
    in_turn: tuple[str, ...]
    decode_while_sampling: bool
    window: int
    tile: Tile | None
    peaks: dict[str, int]
    limit: int

    @property
    def peak(self) -> int:
        """Peak bytes over all phases."""
        return max(self.peaks.values())

    @property
    def spare(self) -> int:
        """Bytes for the KV cache of history: half of what sampling leaves free."""
        return max(0, self.limit - self.peaks["sample"]) // 2

    @property
    def summary(self) -> str:
        """The plan in one line."""
        tile = f"tiles of {self.tile.height}x{self.tile.width} px" if self.tile else "no tiles"
        when = "while sampling" if self.decode_while_sampling else "after sampling"
        where = " ".join((self.offload, *self.in_turn))
        return f"offload {where}; decode {self.window} latent frames at a time {when}, {tile}"

    def __str__(self) -> str:
        rows = [*self.peaks.items(), ("limit", self.limit)]
        return "\n".join([self.summary, *(f"{name:<8}{format_bytes(size):>12}" for name, size in rows)])


def plan_memory(work: Workload, limit: int, *, offload: Offload | None = None, whole_dit: bool = False) -> Plan:
    """The fastest plan within the limit, with as few tiles as possible, since tiles change the picture.

    Args:
        work: what is generated, by which models.
        limit: bytes of the device that may be used.
        offload: the mode; None: the fastest that fits.
        whole_dit: do not offload the DiT layer by layer (it is compiled).

    Raises:
        ValueError: no plan is within the limit; the message names the least possible peak and its phase.
    """
    modes = [mode for mode in OFFLOAD_MODES if offload in (None, mode.offload)]
    modes = [mode for mode in modes if not (whole_dit and "dit" in mode.in_turn)]
    modes = modes if work.device == "cuda" else [OFFLOAD_MODES[0]]
    least: Plan | None = None
    for mode in modes:
        tiled = mode != OFFLOAD_MODES[0] or len(modes) == 1
        for plan in _candidate_plans(work, limit, mode, tiled):
            if plan.peak <= limit:
                return plan
            least = min(least or plan, plan, key=lambda plan: plan.peak)
            if (
                mode != modes[-1]
                and not plan.decode_while_sampling
                and max(plan.peaks["text"], plan.peaks["sample"]) > limit
            ):
                break  # a smaller decoding window does not lower these peaks
    assert least is not None
    phase = max(least.peaks, key=lambda name: least.peaks[name])
    fewer = "fewer latent frames or fewer clips at a time" if work.batch > 1 else "fewer latent frames"
    advice = f"a smaller size or {fewer}" if phase != "text" else "another dtype"
    request = work.request
    raise ValueError(
        f"{request.num_latent_frames} latent frames at {request.height}x{request.width} px do not fit into "
        f"{format_bytes(limit)}: the least possible is {format_bytes(least.peak)}, which the phase {phase!r} needs. "
        f"Raise max_memory if there is more, or ask for {advice}."
    )


def _candidate_plans(work: Workload, limit: int, mode: Mode, tiled: bool) -> Iterator[Plan]:
    """Yield the plans of one mode, the fastest first."""
    request = work.request
    widest = min(request.decode_window or request.num_latent_frames, request.num_latent_frames)
    tiles: list[Tile | None] = [None, *(_tiles(request, work.sizes.vae) if tiled else ())]
    for tile in tiles:
        for window in (1,) if tile else dict.fromkeys((widest, min(widest, 2), 1)):
            for while_sampling in (True, False) if tile is None and request.num_latent_frames > 1 else (False,):
                decoding = Decoding(while_sampling, window, tile)
                yield Plan(*mode, *decoding, phase_bytes(work, mode, decoding), limit)


def _tiles(request: GenerationRequest, vae: VAEConfig) -> list[Tile]:
    longest = max(request.height, request.width)
    sides = [side for side in TILE_SIDES if side < longest]
    return [Tile.fitting(request.height, request.width, side, vae.space_factor) for side in sides]


def phase_bytes(work: Workload, mode: Mode, decoding: Decoding) -> dict[str, int]:
    """Peak bytes of each phase: text, encode (if frames are given), sample, decode."""
    offload, in_turn = mode
    sizes, request = work.sizes, work.request
    text, dit, vae = sizes.text_bytes, sizes.dit_bytes, sizes.vae_bytes
    resident: dict[str, int]
    if offload == "none":
        resident = dict.fromkeys(("text", "encode", "sample", "decode"), text + dit + vae)
    else:
        resident = {"text": sizes.text_layer_bytes if "text" in in_turn else text, "encode": vae, "decode": vae}
        resident["sample"] = sizes.dit_layer_bytes if "dit" in in_turn else dit
    latents = LATENT_COPIES * _num_latents(sizes, request) * work.batch * 4
    pixels = 3 * request.num_frames(sizes.vae) * request.height * request.width * sizes.dtype.itemsize
    activations = {
        "text": text_bytes(work),
        "sample": latents + sample_bytes(work),
        "decode": latents + decode_bytes(work, decoding),
    }
    if decoding.tile:
        activations["decode"] += TILED_COPIES * pixels
    if work.num_given:
        activations["encode"] = encode_bytes(work, decoding.tile)
    if decoding.while_sampling:
        vae_bytes = 0 if offload == "none" else vae  # else they are resident in every phase
        activations["sample"] += vae_bytes + activations["decode"]
    phases = (name for name in ("text", "encode", "sample", "decode") if name in activations)
    return {name: int(SLACK * (resident[name] + activations[name])) for name in phases}


def text_bytes(work: Workload) -> int:
    """Activations of the text encoder: prompts and the negative prompt."""
    sizes = work.sizes
    return (work.batch + 1) * MAX_TOKENS * sizes.text_dim * TEXT_WIDTHS * sizes.dtype.itemsize


def sample_bytes(work: Workload) -> int:
    """Activations of the DiT at the last unit's finest stage, where the sequence is longest."""
    sizes, request = work.sizes, work.request
    scales = (request.guidance_scale, request.video_guidance_scale)
    rows = work.batch * (2 if any(scale not in OFF for scale in scales) else 1)
    tokens = MAX_TOKENS + num_tokens(sizes, request)
    return rows * DIT_WIDTHS * tokens * sizes.dit.dim * sizes.dtype.itemsize


def num_tokens(sizes: ModelSizes, request: GenerationRequest) -> int:
    """Image tokens of the last unit's finest stage, history included."""
    pyramid, space = sizes.pyramid, sizes.vae.space_factor
    h, w = request.height // space, request.width // space
    units = units_in(request.num_latent_frames, pyramid.frames_per_unit)
    noisy = 1 if units == 1 else pyramid.frames_per_unit
    earlier = torch.empty(1, 1, request.num_latent_frames - noisy, h, w, device="meta")
    clips = []
    if units > 1:
        past = latent_pyramid(earlier, pyramid.num_stages)
        clips = history_clips(past, pyramid.num_stages - 1, units - 1, pyramid.frames_per_unit)
    return (noisy * h * w + sum(clip.numel() for clip in clips)) // PATCH**2


def decode_bytes(work: Workload, decoding: Decoding) -> int:
    """Activations of decoding a clip, or a tile of it, window after window."""
    sizes, request, tile = work.sizes, work.request, decoding.tile
    height, width = (tile.height, tile.width) if tile else (request.height, request.width)
    space = sizes.vae.space_factor
    shape = (min(height, request.height) // space, min(width, request.width) // space)
    lengths = _lengths(request.num_latent_frames, decoding.window, decoding.window)
    return _vae_bytes(sizes.vae.model_dump_json(), sizes.dtype, work.device != "cpu", False, lengths, *shape)


def encode_bytes(work: Workload, tile: Tile | None) -> int:
    """Activations of encoding the given frames, and those frames themselves."""
    sizes, request = work.sizes, work.request
    height, width = (tile.height, tile.width) if tile else (request.height, request.width)
    lengths = _lengths(work.num_given, 1 + sizes.vae.time_factor, sizes.vae.time_factor)
    coded = _vae_bytes(sizes.vae.model_dump_json(), sizes.dtype, work.device != "cpu", True, lengths, height, width)
    return coded + 3 * work.num_given * request.height * request.width * (4 + sizes.dtype.itemsize)


def _lengths(total: int, first: int, window: int) -> tuple[int, ...]:
    """Sizes of the first two windows; later ones need no more memory."""
    first = min(total, first)
    return (first, min(window, total - first)) if total > first else (first,)


@functools.lru_cache(maxsize=64)
def _vae_bytes(
    config_json: str,
    dtype: torch.dtype,
    on_gpu: bool,
    encode: bool,
    lengths: tuple[int, ...],
    height: int,
    width: int,
) -> int:
    """Peak bytes of the VAE's code, run on fake tensors. config_json: a VAEConfig."""
    config = VAEConfig.model_validate_json(config_json)
    with torch.device("meta"):
        vae = CausalVideoVAE(config)
    shapes = {name: value.shape for name, value in vae.state_dict().items()}
    with FakeTensorMode(), torch.device("cuda" if on_gpu else "cpu"), torch.no_grad():
        vae.load_state_dict({name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}, assign=True)
        channels = 3 if encode else config.latent_channels
        chunks = [torch.empty(1, channels, length, height, width, dtype=dtype) for length in lengths]

        def code() -> None:
            for part in vae.encode_stream(iter(chunks)) if encode else vae.decode_stream(iter(chunks)):
                if not encode:
                    (part.float() * 127.5 + 127.5).clamp(0, 255)

        return peak_bytes(code)


def _num_latents(sizes: ModelSizes, request: GenerationRequest) -> int:
    space = sizes.vae.space_factor
    area = (request.height // space) * (request.width // space)
    return sizes.vae.latent_channels * request.num_latent_frames * area


def free_bytes(device: torch.device, weights_on_device_bytes: int) -> int:
    """Bytes of a device that this process may use, its own weights included.

    weights_on_device_bytes: size of the weights that are already on the device.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return _free_ram() + weights_on_device_bytes


def _free_ram() -> int:
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
