"""Properties of files by header and first frame."""

import numpy as np

from pyramid_model.video.footage import decode, probe


def test_sample_aspect_widens_the_picture(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [6], aspect=(16, 11))
    header = probe(str(tmp_path / "a.mp4"))
    assert (header.width, header.height, header.coded_width) == (round(160 * 16 / 11), 96, 160)


def test_hdr_is_flagged(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [4], transfer=16)
    assert probe(str(tmp_path / "a.mp4")).is_hdr
    assert probe(str(tmp_path / "a.mp4")).color_transfer == "smpte2084"


def test_colours_are_written_down_as_the_file_states_them(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [4], transfer=1)
    header = probe(str(tmp_path / "a.mp4"))
    assert (header.color_transfer, header.color_primaries, header.is_hdr) == ("bt709", "", False)
    full = shoot(tmp_path / "b.mkv", [4], codec="mjpeg", pix_fmt="yuvj420p")
    assert probe(str(tmp_path / "b.mkv")).color_range == "full"
    frame = next(decode(str(tmp_path / "b.mkv")))
    assert np.abs(frame.upright(96, 160).to_ndarray(format="rgb24").astype(int) - full[0]).mean() < 6
