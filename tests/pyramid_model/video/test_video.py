"""Clips that we write come back frame by frame, at the size and rate asked for. About 3 s."""

import os
import sys

import fsspec
import numpy as np
import psutil
import pytest
from PIL import Image

from pyramid_model.video import video
from pyramid_model.video.video import VideoError, clip_length, open_video, read_clip, write_image, write_video


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


@pytest.fixture(scope="module")
def clip(tmp_path_factory, shoot):
    """(uri, frames) of a clip of 30 frames, 96x160, 30 fps."""
    folder = tmp_path_factory.mktemp("clip")
    frames = shoot(folder / "source.mp4", [30])
    write_video(str(folder / "clip.mp4"), frames, fps=30, crf=8)
    return str(folder / "clip.mp4"), frames


def test_every_frame_comes_back_in_its_place(clip):
    uri, frames = clip
    read = read_clip(uri, height=96, width=160)
    assert (read.shape, read.dtype, clip_length(uri)) == (frames.shape, np.uint8, 30)
    for index in range(30):
        assert psnr(read[index], frames[index]) > 34
    assert psnr(read[5], frames[6]) < 30


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"fps": 30}, range(30)),
        ({"fps": 15}, range(0, 30, 2)),
        ({"fps": 29.97}, range(30)),
        ({"fps": 30.03}, range(30)),
        ({"fps": 15, "num_frames": 4}, range(0, 8, 2)),
        ({"num_frames": 9, "start_s": 0.5}, range(15, 24)),
        ({"fps": 10, "num_frames": 3, "start_s": 0.1}, (3, 6, 9)),
        ({"fps": 24}, [round(k * 30 / 24 - 1e-6) for k in range(24)]),
        ({"fps": 60, "num_frames": 5}, (0, 0, 1, 1, 2)),
    ],
)
def test_other_rates_take_the_nearest_frames(clip, asked, expected):
    uri, frames = clip
    read = read_clip(uri, height=96, width=160, **asked)
    assert [int(np.argmax([psnr(got, frame) for frame in frames])) for got in read] == list(expected)


@pytest.mark.skipif(sys.platform != "linux", reason="decord reads on Linux only")
@pytest.mark.parametrize("size", [(96, 160), (48, 48), (64, 40), (192, 320)])
def test_decord_and_pyav_give_the_same_picture(clip, size, monkeypatch):
    asked = {"height": size[0], "width": size[1], "fps": 20, "num_frames": 7, "start_s": 0.2}
    by_decord = read_clip(clip[0], **asked)
    monkeypatch.setattr(sys, "platform", "darwin")
    by_pyav = read_clip(clip[0], **asked)
    assert psnr(by_decord, by_pyav) > 36


def test_a_frame_is_covered_and_cut_around_its_centre(tmp_path):
    frames = np.zeros((4, 64, 128, 3), np.uint8)
    frames[:, :, 32:96] = 200  # the middle half
    write_video(str(tmp_path / "a.mp4"), frames, fps=24)
    read = read_clip(str(tmp_path / "a.mp4"), height=32, width=32)
    assert read.shape == (4, 32, 32, 3)
    assert np.abs(read[:, 1:-1, 1:-1].astype(int) - 200).max() < 12


def test_colours_survive(tmp_path):
    colours = np.array([[200, 40, 60], [20, 220, 30], [10, 20, 240], [255, 255, 255], [0, 0, 0]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 32, 32, 3))
    write_video(str(tmp_path / "a.mp4"), frames, fps=24, crf=4)
    read = read_clip(str(tmp_path / "a.mp4"), height=32, width=32)
    assert np.abs(read[:, 16, 16].astype(int) - colours).max() <= 4


def test_more_frames_than_there_are_is_an_error_with_the_remedy(clip):
    with pytest.raises(ValueError, match=r"has 30 frames from 0 s on at 30 fps, but 31 are needed: lower num_frames"):
        read_clip(clip[0], height=96, width=160, num_frames=31)


@pytest.mark.parametrize(("name", "kind"), [("nowhere.mp4", "missing"), ("text.mp4", "not_media")])
def test_what_is_no_clip_says_so(tmp_path, name, kind):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError) as caught:
        read_clip(str(tmp_path / name), height=8, width=8)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("frames", "message"),
    [(np.zeros((2, 31, 32, 3), np.uint8), "needs even sizes, got 31x32 px"), ([], "no frames to write")],
)
def test_nothing_is_left_when_a_video_cannot_be_written(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(str(tmp_path / "a.mp4"), frames, fps=24)
    assert os.listdir(tmp_path) == []


def test_a_video_written_in_parts_is_the_video_written_at_once(tmp_path, clip):
    with open_video(str(tmp_path / "parts.mp4"), fps=30, crf=8) as video:
        for part in (clip[1][:1], clip[1][1:9], clip[1][9:]):
            video.write(part)
            assert [name for name in os.listdir(tmp_path) if not name.startswith(".writing-")] == []
    assert os.listdir(tmp_path) == ["parts.mp4"]
    parts, whole = (read_clip(uri, height=96, width=160) for uri in (str(tmp_path / "parts.mp4"), clip[0]))
    assert len(parts) == len(whole) == 30
    # Not bit for bit: of some thousand encodings of the same frames with one thread, a few have other bits.
    assert min(map(psnr, parts, whole)) > 40


@pytest.mark.parametrize("remote", [False, True])
def test_nothing_is_left_of_a_video_that_fails_half_way(tmp_path, clip, remote):
    def failing():
        yield from clip[1][:9]
        raise RuntimeError("sampling failed")

    with pytest.raises(RuntimeError, match="sampling failed"):
        write_video("memory://half/a.mp4" if remote else str(tmp_path / "a.mp4"), failing(), fps=30)
    assert not fsspec.filesystem("memory").glob("half/*")
    assert os.listdir(tmp_path) == []


def test_frames_of_another_size_are_refused(tmp_path, clip):
    with pytest.raises(ValueError, match="frame 9 has 48x160 px, earlier frames have 96x160 px"):
        write_video(str(tmp_path / "a.mp4"), [*clip[1][:9], clip[1][9, :48]], fps=30)
    assert os.listdir(tmp_path) == []


def test_memory_of_encoding_does_not_grow_with_the_length(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (8, 256, 256, 3), np.uint8)
    process, held = psutil.Process(), []
    with open_video(str(tmp_path / "a.mp4"), fps=24, crf=40) as video:
        for _ in range(40):
            video.write(frames)
            held.append(process.memory_info().rss)
    assert held[-1] - held[12] < 8 * frames.nbytes  # the 28 writes between brought 28 times their bytes


def test_an_image_comes_back_as_it_was(tmp_path, clip):
    for uri in (str(tmp_path / "a.png"), "memory://images/a.png"):
        write_image(uri, clip[1][0])
        with fsspec.open(uri, "rb") as file:
            assert np.array_equal(np.asarray(Image.open(file)), clip[1][0])
    assert os.listdir(tmp_path) == ["a.png"]


def test_remote_clips_are_written_and_read_like_local_ones(clip):
    frames = clip[1][:6]
    write_video("memory://clips/a.mp4", frames, fps=24, crf=8)
    assert clip_length("memory://clips/a.mp4") == 6
    assert psnr(read_clip("memory://clips/a.mp4", height=96, width=160), frames) > 34


def test_errors_cross_process_borders():
    import pickle

    error = pickle.loads(pickle.dumps(video.VideoError("truncated", "ends early")))
    assert (error.kind, str(error)) == ("truncated", "ends early")
