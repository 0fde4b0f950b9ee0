"""What a clip starts with: pictures of every sort, videos of every shape."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from pyramid_model.config import PyramidConfig, VAEConfig
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.generate.start_frames import check_given, fit_image, read_ending, read_image, upright

RAMP = np.linspace(0, 255, 96).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)  # dark left, bright right


def test_sixteen_bits_a_pixel_keep_their_brightness(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), RAMP[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "deep.png")), RAMP)


def test_transparent_parts_are_black_whatever_colour_lies_below(tmp_path):
    pixels = np.dstack([RAMP, np.full(RAMP.shape[:2], 255, np.uint8)])
    pixels[:32] = (255, 0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "hole.png")
    picture = np.asarray(read_image(tmp_path / "hole.png"))
    assert picture[:32].max() == 0
    np.testing.assert_array_equal(picture[32:], RAMP[32:])
    np.testing.assert_array_equal(fit_image(Image.fromarray(pixels), 64, 96), picture)


@pytest.mark.parametrize("mode", ["P", "L", "CMYK", "1"])
def test_an_image_of_any_mode_becomes_rgb(tmp_path, mode):
    Image.fromarray(RAMP).convert(mode).save(tmp_path / "image.tiff")
    picture = np.asarray(read_image(tmp_path / "image.tiff")).astype(int)
    assert picture.shape == (64, 96, 3)
    assert picture[:, 64:].mean() > picture[:, :32].mean() + 100


def test_a_photo_that_was_taken_sideways_is_turned_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "photo.jpg", exif=turned)
    for photo in (read_image(tmp_path / "photo.jpg"), upright(Image.open(tmp_path / "photo.jpg"))):
        picture = np.asarray(photo).astype(int)
        assert picture.shape == (96, 64, 3)
        assert picture[64:].mean() > picture[:32].mean() + 100


def test_frames_of_samples_that_are_not_square_are_stretched_as_a_player_does(shoot, tmp_path):
    frames = shoot(tmp_path / "wide.mp4", (12,), size=(96, 96), aspect=(2, 1))
    ending, total = read_ending(tmp_path / "wide.mp4", 9, 24, 96, 192)
    assert (ending.shape, total) == ((9, 96, 192, 3), 12)
    stretched = cv2.resize(frames[-1], (192, 96), interpolation=cv2.INTER_LANCZOS4)
    assert np.abs(ending[-1].astype(int) - stretched).mean() < 8


@pytest.mark.parametrize(("fps", "num_frames", "total"), [(12, 10, 19), (30, 30, 24), (60, 60, 24), (24, 5, 5)])
def test_a_video_of_another_rate_is_taken_at_the_rate_of_the_clip(shoot, tmp_path, fps, num_frames, total):
    shoot(tmp_path / "video.mp4", (num_frames,), size=(64, 96), fps=fps)
    ending, num_at_rate = read_ending(tmp_path / "video.mp4", 9, 24, 64, 128)
    assert (num_at_rate, len(ending)) == (total, min(total, 9))


def test_a_frame_is_shown_until_the_next_one_comes(tmp_path):
    with av.open(tmp_path / "gap.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 64, 96, "yuv420p", Fraction(1, 24)
        for pts, grey in ((0, 40), (1, 80), (10, 200), (11, 240)):  # nine frames' time pass after the second
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    ending, total = read_ending(tmp_path / "gap.mkv", 20, 24, 64, 96)
    greys = ending.mean(axis=(1, 2, 3)).round(-1).astype(int).tolist()
    assert (total, greys) == (12, [40] + [80] * 9 + [200, 240])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": "text.txt"}, "cannot be read as an image"),
        ({"image": "gone.png"}, "there is no image"),
        ({"video": "text.txt"}, "cannot be extended"),
        ({"video": "gone.mp4"}, "cannot be extended: .*missing"),
        ({"image": "text.txt", "video": "text.txt"}, "both an image and a video"),
    ],
)
def test_what_cannot_start_a_clip_is_refused_before_any_work(tmp_path, given, message):
    (tmp_path / "text.txt").write_text("neither a picture nor a video\n" * 20)
    files = {"image": None, "video": None} | {kind: tmp_path / name for kind, name in given.items()}
    with pytest.raises(ValueError, match=message):
        check_given(GenerationRequest(), **files, vae=VAEConfig(), pyramid=PyramidConfig())


def test_a_picture_has_no_room_for_what_is_given(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "image.png")
    request = GenerationRequest(num_latent_frames=1)
    with pytest.raises(ValueError, match=r"num_latent_frames 1: .*needs at least 2. Set request\.num_latent_frames"):
        check_given(request, tmp_path / "image.png", None, VAEConfig(), PyramidConfig())
