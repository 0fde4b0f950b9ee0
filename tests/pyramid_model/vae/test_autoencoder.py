"""Facts about the causal video VAE. Runs in about 5 s."""

from queue import Queue
from threading import Thread

import pytest
import torch

from pyramid_model.generate.peak_memory import peak_bytes
from pyramid_model.vae import autoencoder
from pyramid_model.vae.pixels import uint8_pixels


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.fixture
def clip():
    return torch.rand(2, 3, 17, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_shapes_are_1_plus_8k_frames_to_1_plus_k_latents_an_eighth_of_the_side(tiny_vae, clip):
    latents = tiny_vae.encode(clip).mean
    assert latents.shape == (2, 4, 3, 2, 3)
    assert tiny_vae.decode(latents).shape == clip.shape


@torch.no_grad()
def test_a_latent_frame_does_not_depend_on_later_frames(tiny_vae, clip):
    changed = clip.clone()
    changed[:, :, 9:] = 0
    close(tiny_vae.encode(changed).mean[:, :, :2], tiny_vae.encode(clip).mean[:, :, :2])


@torch.no_grad()
@pytest.mark.parametrize("window", [8, 16])
def test_encoding_in_chunks_is_encoding_at_once(tiny_vae, clip, window):
    close(tiny_vae.encode(clip, window).mean, tiny_vae.encode(clip).mean)


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("small_piece", [0, autoencoder.SMALL_PIECE])
def test_decoding_in_chunks_is_decoding_at_once(tiny_vae, window, small_piece, monkeypatch):
    monkeypatch.setattr(autoencoder, "SMALL_PIECE", small_piece)
    latents = torch.randn(1, 4, 5, 2, 2)
    close(tiny_vae.decode(latents, window), tiny_vae.decode(latents))


@torch.no_grad()
def test_frames_come_out_as_latents_come_in(tiny_vae):
    latents = torch.randn(1, 4, 3, 2, 2)
    stream = tiny_vae.decode_stream(latents.split(1, dim=2))
    first, second, third = stream
    assert [part.shape[2] for part in (first, second, third)] == [1, 8, 8]
    close(torch.cat([first, second, third], dim=2), tiny_vae.decode(latents))


def test_units_are_decoded_in_a_thread_of_their_own_while_others_are_sampled(tiny_vae):
    latents, units, parts = torch.randn(1, 4, 4, 2, 2), Queue(), []

    @torch.no_grad()
    def decode():
        parts.extend(tiny_vae.decode_stream(iter(units.get, None)))

    thread = Thread(target=decode)
    thread.start()
    for unit in (*latents.split(1, dim=2), None):
        units.put(unit)
    thread.join()
    assert not any(part.requires_grad for part in parts)
    close(torch.cat(parts, dim=2), tiny_vae.decode(latents).detach())


@torch.no_grad()
def test_memory_of_decoding_a_stream_does_not_grow_with_its_length(tiny_vae, monkeypatch):
    monkeypatch.setattr(autoencoder, "SMALL_PIECE", 0)  # as for large frames

    def peak(num_latents: int, window: int) -> int:
        units = (torch.zeros(1, 4, window, 4, 4) for _ in range(num_latents // window))
        return peak_bytes(lambda: [float(uint8_pixels(part).sum()) for part in tiny_vae.decode_stream(units)])

    assert peak(4, 1) == peak(12, 1)
    assert peak(12, 1) < 0.8 * peak(12, 2) < 0.4 * peak(12, 12)


@torch.no_grad()
def test_frames_decoded_in_windows_are_kept_once(tiny_vae):
    latents = torch.zeros(1, 4, 33, 4, 4)
    at_a_time = peak_bytes(lambda: [part.sum() for part in tiny_vae.decode_stream(latents.split(1, dim=2))])
    frames = 257 * 3 * 32 * 32 * 4
    assert peak_bytes(lambda: tiny_vae.decode(latents, window=1)) < at_a_time + 1.1 * frames


@torch.no_grad()
def test_two_clips_coded_in_turns_do_not_disturb_each_other(tiny_vae):
    a, b = torch.randn(2, 1, 4, 2, 2, 2).unbind()
    stream_a, stream_b = (tiny_vae.decode_stream(z.split(1, dim=2)) for z in (a, b))
    turns = [(next(stream_a), next(stream_b)) for _ in range(2)]
    close(torch.cat([part for part, _ in turns], dim=2), tiny_vae.decode(a))
    close(torch.cat([part for _, part in turns], dim=2), tiny_vae.decode(b))


@pytest.mark.parametrize(
    ("shape", "window", "message"),
    [
        ((1, 3, 16, 16, 16), None, "16 frames: the VAE needs 1 \\+ 8k frames, for example 9"),
        ((1, 3, 9, 20, 16), None, "multiples of 8"),
        ((1, 3, 17, 16, 16), 12, "window 12"),
    ],
)
def test_frames_that_do_not_fit_are_refused_with_what_would_be_right(tiny_vae, shape, window, message):
    with pytest.raises(ValueError, match=message):
        tiny_vae.encode(torch.zeros(shape), window)
