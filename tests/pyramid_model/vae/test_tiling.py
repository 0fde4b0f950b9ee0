"""Coding in blended tiles. Runs in about 2 s."""

import pytest
import torch

from pyramid_model.vae.tiling import Tile, blend, code_tiled


@pytest.mark.parametrize("size", [(8, 8), (8, 20), (19, 13), (5, 32)])
def test_tiles_that_agree_where_they_overlap_give_the_whole(size):
    x = torch.randn(1, 2, 3, *size)
    torch.testing.assert_close(code_tiled(x, lambda tile: tile, (8, 8), (8, 8)), x)


def test_a_blend_starts_at_the_neighbour_and_ends_at_the_tile():
    before, after = torch.zeros(1, 1, 1, 1, 8), torch.ones(1, 1, 1, 1, 8)
    assert blend(before, after, 4, dim=4).flatten().tolist() == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


@torch.no_grad()
def test_a_tile_that_covers_the_frame_changes_nothing(tiny_vae):
    frames = torch.randn(1, 3, 9, 32, 64)
    whole = tiny_vae.encode(frames).mean
    for tile in (Tile(32, 64), 64):
        assert torch.equal(tiny_vae.encode(frames, tile=tile).mean, whole)
        assert torch.equal(tiny_vae.decode(whole, tile=tile), tiny_vae.decode(whole))


@torch.no_grad()
@pytest.mark.parametrize("tile", [32, Tile(32, 64), Tile(64, 32)])
def test_tiles_and_windows_of_time_go_together(tiny_vae, tile):
    frames = torch.randn(1, 3, 17, 48, 72)
    tiled = tiny_vae.encode(frames, tile=tile).mean
    assert tiled.shape == (1, 4, 3, 6, 9)
    torch.testing.assert_close(tiny_vae.encode(frames, window=8, tile=tile).mean, tiled, atol=1e-5, rtol=0)
    restored = tiny_vae.decode(tiled, tile=tile)
    assert restored.shape == frames.shape
    torch.testing.assert_close(tiny_vae.decode(tiled, window=1, tile=tile), restored, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frame", [(384, 640), (768, 1280), (1024, 1024), (48, 72)])
@pytest.mark.parametrize("largest", [32, 128, 256, 500, 512])
def test_fitting_tiles_are_no_more_and_no_larger_than_fixed_ones(frame, largest):
    tile = Tile.fitting(*frame, largest)
    tile.in_latents(8)  # a whole number of latents overlaps
    for side, own in zip(frame, (tile.height, tile.width), strict=True):
        fixed = largest - largest % 32
        assert min(own, side) <= fixed
        if side > fixed:
            assert len(range(0, side, own * 3 // 4)) <= len(range(0, side, fixed * 3 // 4))
        else:
            assert own * 3 // 4 >= side  # a single tile


def test_fitting_tiles_divide_the_frame():
    tile = Tile.fitting(768, 1280, 512)
    assert (tile.height, tile.width) == (512, 448)  # steps of 384 and 336 px: 2 and 4 tiles
    assert 768 % (tile.height * 3 // 4) == 0


@pytest.mark.parametrize(("tile", "words"), [(Tile(40, 40), "multiples of 32 px"), (16, "at least 32 px")])
def test_a_tile_that_cannot_overlap_by_a_quarter_is_refused(tiny_vae, tile, words):
    with pytest.raises(ValueError, match=words):
        tiny_vae.decode(torch.zeros(1, 4, 1, 8, 8), tile=tile)
