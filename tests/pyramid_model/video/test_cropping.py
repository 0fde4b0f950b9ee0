"""Black bars of video files are found and cut off. Real frames between bars that are made; a few seconds."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pyramid_model.video.borders import Box
from pyramid_model.video.cropping import LEAST_SAMPLED, Framing, find_picture, framing
from pyramid_model.video.footage import Footage, probe

SAMPLE = Path(__file__).parents[3] / "datasets" / "sample" / "sintel_mountain.mp4"
BARRED = Path(__file__).parents[4] / "shared" / "assets" / "videos" / "mdn_rabbit.mp4"
HEIGHT, WIDTH = 360, 848


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    """35 frames from several shots of a real film, which begins and ends dark; RGB uint8 (t 360 848 3)."""
    with Footage(str(SAMPLE)) as footage:
        return np.stack([frame.rgb() for frame in footage.frames() if frame.index % 6 == 0])


def boxed(path: Path, film: np.ndarray, top: int, left: int, gop: int = 250, rotation: int = 0, **size: int) -> str:
    """The film on black, its upper left corner at (top, left), as H.264."""
    height, width = size.get("height", HEIGHT + 2 * top), size.get("width", WIDTH + 2 * left)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(24), options={"crf": "20", "g": str(gop), "preset": "veryfast"}
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in film:
            frame = np.zeros((height, width, 3), np.uint8)
            frame[top : top + HEIGHT, left : left + WIDTH] = picture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def within_2_px(box: Box | None, *expected: int) -> bool:
    """Whether the box is that one, give or take."""
    return box is not None and all(abs(actual - wanted) <= 2 for actual, wanted in zip(box, expected, strict=True))


@pytest.mark.parametrize("gop", [2, 250])
def test_the_bars_of_a_real_film_are_found_within_two_pixels_with_many_key_frames_and_with_few(tmp_path, film, gop):
    path = boxed(tmp_path / "letterbox.mp4", film[::2], top=61, left=0, gop=gop)
    assert within_2_px(find_picture(path), 0, 61, WIDTH, 61 + HEIGHT)
    assert len(film) // 4 >= LEAST_SAMPLED  # so that both ways to sample were taken


def test_bars_on_all_sides_and_of_a_turned_video_are_those_of_what_is_shown(tmp_path, film):
    path = boxed(tmp_path / "window.mp4", film[::3], top=40, left=30, height=440, width=920)
    assert within_2_px(find_picture(path), 30, 40, 30 + WIDTH, 40 + HEIGHT)
    turned = boxed(tmp_path / "turned.mp4", film[::3], top=40, left=0, height=420, rotation=90)
    header = probe(turned)
    assert (header.width, header.height) == (420, WIDTH)
    assert within_2_px(find_picture(turned), 40, 0, 40 + HEIGHT, WIDTH)


def test_a_film_without_bars_has_no_box_however_dark_it_begins():
    assert find_picture(str(SAMPLE)) is None


@pytest.mark.skipif(not BARRED.exists(), reason="needs the shared videos")
def test_the_black_edges_of_a_captured_video_are_found():
    assert find_picture(str(BARRED)) == (8, 0, 712, 480)


def test_sizes_are_even_and_within_the_picture_and_the_longer_side_is_that_of_the_picture(tmp_path, film):
    video = probe(boxed(tmp_path / "letterbox.mp4", film[:2], top=61, left=0))
    assert framing(video, None) == Framing((482, 848))
    assert framing(video, None, Box(0, 61, 848, 421)) == Framing((482, 848), Box(0, 62, 848, 420))
    small = framing(video, 424, Box(0, 61, 848, 421))
    assert small == Framing((240, 424), Box(0, 32, 424, 208))
    assert small.size == (176, 424)
    pillar = framing(video, 240, Box(184, 0, 664, 482))
    assert max(pillar.size) == 240
    assert pillar.crop_of(video) == pytest.approx([184, 0, 480, 482], abs=2)
    assert framing(video, None).crop_of(video) is None


def test_a_picture_is_cut_out_without_loss(film, tmp_path):
    path = boxed(tmp_path / "window.mp4", film[8:9], top=40, left=30)
    cut = Framing((440, 908), Box(30, 40, 878, 400))
    with Footage(path) as footage:
        frame = next(footage.frames())
        whole = frame.upright(440, 908)
        picture = cut.crop(whole)
    assert (picture.height, picture.width) == cut.size == (HEIGHT, WIDTH)
    assert (picture.to_ndarray(format="gray") == whole.to_ndarray(format="gray")[40:400, 30:878]).all()
    difference = picture.to_ndarray(format="rgb24").astype(int) - film[8]
    assert np.abs(difference).mean() < 4
