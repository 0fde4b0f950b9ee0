"""Decoded frames and their conversion to the displayed picture."""

import struct

import numpy as np
import pytest

from pyramid_model.video.footage import Footage, decode, probe


def examine(path):
    """(probe, integrity) of a file."""
    with Footage(str(path)) as footage:
        for _ in footage.frames():
            pass
        return footage.probe, footage.integrity()


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_a_rotated_file_is_turned_upright(tmp_path, shoot, rotation, turns):
    filmed = shoot(tmp_path / "a.mp4", [6], rotation=rotation)
    upright = np.rot90(filmed[0], turns)
    frame = next(decode(str(tmp_path / "a.mp4")))
    height, width = upright.shape[:2]
    header = probe(str(tmp_path / "a.mp4"))
    assert (header.height, header.width, header.coded_height, header.coded_width) == (height, width, 96, 160)
    assert np.abs(frame.rgb().astype(int) - upright).mean() < 4
    assert np.abs(frame.upright(height, width).to_ndarray(format="rgb24").astype(int) - upright).mean() < 4


MIRRORED = {  # display matrix by rows (a b, c d) -> what a player shows of the coded picture
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda coded: np.rot90(np.fliplr(coded)),
    (0, -1, -1, 0): lambda coded: np.rot90(np.flipud(coded)),
}


@pytest.mark.parametrize("matrix", MIRRORED)
def test_a_mirrored_file_is_shown_as_players_show_it(tmp_path, shoot, matrix):
    path = tmp_path / "a.mp4"
    filmed = shoot(path, [6])
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    upright = MIRRORED[matrix](filmed[0])
    frame = next(decode(str(path)))
    height, width = upright.shape[:2]
    header = probe(str(path))
    assert (header.height, header.width) == (height, width)
    assert np.abs(frame.rgb().astype(int) - upright).mean() < 4
    assert np.abs(frame.upright(height, width).to_ndarray(format="rgb24").astype(int) - upright).mean() < 4


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv422p10le", "gray"])
def test_odd_sizes_and_other_formats_become_even_yuv420p(tmp_path, shoot, pix_fmt):
    size = (95, 159) if pix_fmt != "yuv422p10le" else (95, 158)
    filmed = shoot(tmp_path / "a.mp4", [5], size=size, pix_fmt=pix_fmt)
    _, integrity = examine(tmp_path / "a.mp4")
    assert (integrity.num_frames, integrity.problem) == (5, None)
    image = next(decode(str(tmp_path / "a.mp4"))).upright(94, 158)
    assert (image.format.name, image.width, image.height) == ("yuv420p", 158, 94)
    assert np.abs(image.to_ndarray(format="rgb24").astype(int).mean() - filmed[0].mean()) < 8
