"""Plans for the memory there is, held against what the real code takes. Runs in about half a minute."""

import pytest
import torch

from pyramid_model.config import DiTConfig, MiniFluxConfig, MMDiTConfig, PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.flow.history import history_clips, latent_pyramid
from pyramid_model.generate.byte_sizes import parse_bytes
from pyramid_model.generate.model_sizes import ModelSizes
from pyramid_model.generate.offload import largest_layer_bytes, weight_bytes
from pyramid_model.generate.peak_memory import peak_bytes
from pyramid_model.generate.plan import (
    TILED_COPIES,
    Decoding,
    Workload,
    decode_bytes,
    encode_bytes,
    num_tokens,
    plan_memory,
    sample_bytes,
)
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.text import TextFeatures
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.tiling import Tile

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = VAEConfig(
    latent_channels=4,
    encoder=VAEStackConfig(channels=(8, 8, 16, 16), layers=(1, 1, 1, 1), norm_groups=4),
    decoder=VAEStackConfig(channels=(8, 8, 16, 16), layers=(1, 1, 1, 1), norm_groups=4),
)
GIB = 2**30
SMALL = GenerationRequest(height=128, width=192, num_latent_frames=6)


def sizes_of(dit: DiTConfig, vae: VAEConfig, dtype: torch.dtype = torch.bfloat16, text_gib: float = 9.0) -> ModelSizes:
    with torch.device("meta"):
        model = (MMDiT(dit) if isinstance(dit, MMDiTConfig) else MiniFlux(dit)).to(dtype)  # type: ignore[arg-type]
        coder = CausalVideoVAE(vae).to(dtype)
    return ModelSizes(
        dit=dit,
        vae=vae,
        pyramid=PyramidConfig(),
        dtype=dtype,
        text_dim=dit.text_dim,
        text_bytes=int(text_gib * GIB),
        dit_bytes=weight_bytes(model),
        vae_bytes=weight_bytes(coder),
        text_layer_bytes=int(text_gib * GIB) // 40,
        dit_layer_bytes=largest_layer_bytes(model),
    )


RELEASED = sizes_of(MiniFluxConfig(), VAEConfig())
DEFAULT = Workload(RELEASED, GenerationRequest())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        MiniFluxConfig(num_double_blocks=1, num_single_blocks=1, num_heads=8, text_dim=64),
        MMDiTConfig(num_blocks=2, num_heads=8, text_dim=64),
    ],
    ids=["miniflux", "mmdit"],
)
def test_the_estimate_of_sampling_is_near_what_the_transformer_takes(config, dtype):
    sizes = sizes_of(config, VAEConfig(), dtype)
    request = GenerationRequest(height=192, width=256, num_latent_frames=6)
    with torch.device("meta"):
        dit = MMDiT(config) if isinstance(config, MMDiTConfig) else MiniFlux(config)
    dit = dit.to_empty(device="cpu").to(dtype)
    past = latent_pyramid(torch.zeros(2, 16, 5, 24, 32, dtype=dtype), 3)
    clips = [*history_clips(past, 2, 5, 1), torch.zeros(2, 16, 1, 24, 32, dtype=dtype)]
    assert num_tokens(sizes, request) == sum(clip[0, 0].numel() for clip in clips) // 4
    mask = torch.arange(128)[None] < torch.tensor([[20], [128]])
    text = TextFeatures(torch.zeros(2, 128, 64, dtype=dtype), mask, torch.zeros(2, config.pooled_dim, dtype=dtype))
    with torch.no_grad():
        real = peak_bytes(lambda: dit([clips], torch.full((2,), 500.0, dtype=dtype), text))
    assert 0.7 * real <= sample_bytes(Workload(sizes, request)) <= 1.5 * real


@pytest.mark.parametrize(("window", "tile"), [(1, None), (2, None), (6, None), (1, Tile(96, 96))])
def test_the_estimate_of_decoding_is_near_what_the_vae_takes(window, tile):
    sizes = sizes_of(MiniFluxConfig(num_single_blocks=1), TINY, torch.float32)
    vae = CausalVideoVAE(TINY).eval()
    latents = torch.zeros(1, 4, 6, 16, 24)

    def decode() -> None:
        for _ in vae.decode_stream(iter(latents.split(window, dim=2))):
            pass

    with torch.no_grad():
        real = peak_bytes(decode) if tile is None else peak_bytes(lambda: vae.decode(latents, window, tile=tile))
    estimate = decode_bytes(Workload(sizes, SMALL, device="cpu"), Decoding(False, window, tile))
    pixels = TILED_COPIES * 3 * 41 * 128 * 192 * 4 if tile else 0
    assert 0.7 * real <= estimate + pixels <= 1.5 * real


def test_the_estimate_of_encoding_is_near_what_the_vae_takes():
    sizes = sizes_of(MiniFluxConfig(num_single_blocks=1), TINY, torch.float32)
    vae, frames = CausalVideoVAE(TINY).eval(), torch.zeros(1, 3, 17, 128, 192)
    with torch.no_grad():
        real = peak_bytes(lambda: vae.encode(frames, window=8))
    assert 0.7 * real <= encode_bytes(Workload(sizes, SMALL, num_given=17, device="cpu"), None) <= 1.5 * real


@pytest.mark.parametrize("limit", [80, 40, 24, 16, 8])
def test_a_plan_never_exceeds_its_limit_and_more_memory_never_means_more_tiles(limit):
    plan = plan_memory(DEFAULT, limit * GIB)
    assert plan.peak <= limit * GIB
    assert plan_memory(DEFAULT, 2 * limit * GIB).tile is None or plan.tile is not None
    text = str(plan)
    assert f"{plan.peaks['decode'] / GIB:.2f} GiB" in text
    assert f"{limit:.2f} GiB" in text


def test_with_plenty_nothing_waits_and_with_little_everything_does():
    assert plan_memory(DEFAULT, 400 * GIB).offload == "none"
    assert plan_memory(DEFAULT, 400 * GIB).decode_while_sampling
    tight = plan_memory(DEFAULT, 4 * GIB)
    assert (tight.offload, tight.in_turn, tight.decode_while_sampling) == ("sequential", ("text", "dit"), False)
    between = plan_memory(DEFAULT, 8 * GIB)
    assert (between.offload, between.in_turn) == ("sequential", ("text",))
    assert plan_memory(DEFAULT, 400 * GIB, offload="model").offload == "model"


def test_what_is_given_costs_a_phase_and_a_batch_costs_more():
    request = GenerationRequest(num_latent_frames=3)
    alone, given, many = (
        plan_memory(Workload(RELEASED, request, **options), 400 * GIB)
        for options in ({}, {"num_given": 9}, {"batch": 8})
    )
    assert set(given.peaks) - set(alone.peaks) == {"encode"}
    assert many.peaks["sample"] > alone.peaks["sample"]


def test_an_impossible_limit_names_the_least_possible_and_the_phase():
    request = GenerationRequest(height=768, width=1280, num_latent_frames=31)
    with pytest.raises(ValueError, match=r"31 latent frames at 768x1280 px .* least possible is .* GiB") as refused:
        plan_memory(Workload(RELEASED, request), 1 * GIB)
    assert "the phase 'decode'" in str(refused.value)
    least = str(refused.value).split("least possible is ")[1].split(",")[0]
    assert plan_memory(Workload(RELEASED, request), parse_bytes(least)).tile is not None
    with pytest.raises(ValueError, match=r"do not fit into 1\.0 MiB"):
        plan_memory(Workload(RELEASED, request), 2**20)
