"""The closed form of the VAE's arithmetic is what a counter of operations sees. Runs in about 10 s."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pyramid_model.config import VAEConfig, VAEStackConfig
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.flops import decode_flops, encode_flops
from pyramid_model.vae.tiling import Tile

RELEASED = VAEConfig()
ENCODER = VAEStackConfig(channels=(4, 8, 8, 16), layers=(1, 2, 0, 1), norm_groups=2)
DECODER = VAEStackConfig(channels=(4, 8, 8, 16), layers=(2, 1, 1, 1), norm_groups=2)
SMALL = VAEConfig(latent_channels=4, encoder=ENCODER, decoder=DECODER)


def counted(call, *args, **options) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(*args, **options)
    return counter.get_total_flops()


@pytest.mark.parametrize("tile", [None, Tile(32, 64)])
def test_the_closed_form_is_the_count_and_windows_do_not_change_it(tile):
    with FakeTensorMode(), torch.device("cuda"):  # on no GPU, but the way of one: dense convolutions
        vae = CausalVideoVAE(SMALL)
        frames, latents = torch.empty(1, 3, 17, 48, 72), torch.empty(1, 4, 3, 6, 9)
        for window in (None, 1):
            pixels = window and 8 * window
            assert counted(vae.encode, frames, pixels, tile=tile) == encode_flops(SMALL, 17, 48, 72, tile)
            assert counted(vae.decode, latents, window, tile=tile) == decode_flops(SMALL, 17, 48, 72, tile)


def test_the_cpu_leaves_out_no_more_than_the_zero_frames():
    vae, latents = CausalVideoVAE(SMALL), torch.zeros(1, 4, 17, 2, 2)
    assert 0.95 < counted(vae.decode, latents) / decode_flops(SMALL, 129, 16, 16) < 1


@pytest.mark.parametrize(
    ("tile", "pflops"),
    [(None, 2.33), (Tile(256, 256), 3.77), (Tile(512, 512), 3.52), (Tile(512, 448), 3.42)],
)
def test_decoding_5_s_at_768p_takes_the_published_arithmetic(tile, pflops):
    assert decode_flops(RELEASED, 121, 768, 1280, tile) / 1e15 == pytest.approx(pflops, rel=0.01)
