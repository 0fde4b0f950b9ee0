"""The decode pass: first and last frames of clips are exact, and a video that gives no clip says why."""

import os

import numpy as np
import pytest

from pyramid_model.metrics.scorers import IN_DECODE_PASS
from pyramid_model.video.footage import decode
from pyramid_model.video.video import read_clip, write_video
from tasks.cutting.clips import ClipsConfig
from tasks.cutting.video_pass import VideoPass, cut_video


def first_and_last_are_the_source_s(rows: dict, path) -> None:
    """Each clip begins and ends with the frames that its row names, no neighbour resembling them more."""
    source_frames = list(decode(str(path)))
    for row in rows["clips"]:
        read = read_clip(row["uri"], height=row["height"], width=row["width"])
        assert len(read) == row["num_frames"] == row["end_frame"] - row["start_frame"]
        assert source_frames[row["start_frame"]].pts == row["start_pts"] < row["end_pts"]
        assert row["start_s"] < row["end_s"]
        for got, index in ((read[0], row["start_frame"]), (read[-1], row["end_frame"] - 1)):
            near = source_frames[max(0, index - 1) : index + 2]
            pictures = [frame.upright(row["height"], row["width"]).to_ndarray(format="rgb24") for frame in near]
            errors = [np.abs(picture.astype(int) - got).mean() for picture in pictures]
            # Of a still picture the neighbours are as close but for rounding.
            assert errors[[frame.index for frame in near].index(index)] < min(errors) + 0.1
            assert min(errors) < 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("late.ts", {}),
        ("cartoon.avi", {"codec": "mpeg4"}),
        ("b_frames.mkv", {"fps": 25}),
        ("odd.mp4", {"size": (95, 159), "pix_fmt": "yuv444p"}),
        ("wide.mp4", {"aspect": (16, 11)}),
        ("turned.mp4", {"rotation": -90}),
        ("slow.mkv", {"times": [*range(0, 600, 40), *range(600, 3100, 100)]}),
    ],
)
def test_first_and_last_frames_of_clips_are_those_of_the_source(tmp_path, shoot, name, options, cut):
    shoot(tmp_path / name, [25, 15], **options)
    config = ClipsConfig(min_frames=5, max_frames=12, margin_frames=1, overlap_frames=3, crf=10)
    rows = cut(tmp_path / name, tmp_path, config)
    spans = [(row["shot"], row["start_frame"], row["end_frame"]) for row in rows["clips"]]
    assert spans == [(0, 0, 12), (0, 9, 21), (0, 18, 24), (1, 26, 38), (1, 35, 40)][: len(spans)]
    assert len(spans) == 5
    assert {(row["height"] % 2, row["width"] % 2) for row in rows["clips"]} == {(0, 0)}
    assert rows["clips"][0]["start_s"] == 0
    first_and_last_are_the_source_s(rows, tmp_path / name)


def test_a_video_of_one_frame_has_a_reason_and_no_clip(tmp_path, shoot, cut):
    shoot(tmp_path / "one.mp4", [1])
    [video] = cut(tmp_path / "one.mp4", tmp_path)["videos"]
    assert (video["status"], video["error_type"], video["num_frames"]) == ("skipped", "no_clips", 1)
    assert "find_gradual" not in video["error"]  # nothing is blended


@pytest.mark.parametrize(("name", "orientation", "size"), [("a.png", 1, (90, 160)), ("b.jpg", 6, (160, 90))])
def test_a_picture_is_a_clip_of_one_frame_as_it_is_shown(tmp_path, name, orientation, size, cut):
    from PIL import Image

    down, across = np.mgrid[:90, :160]
    pixels = np.stack([across, 2 * down, 255 - across], axis=-1).astype(np.uint8)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / name, exif=exif)
    (row,) = cut(tmp_path / name, tmp_path, ClipsConfig(min_frames=25))["clips"]
    assert (row["num_frames"], row["height"], row["width"]) == (1, *size)
    (frame,) = read_clip(row["uri"], height=size[0], width=size[1], fps=24, num_frames=1)
    expected = pixels if orientation == 1 else np.rot90(pixels, -1)
    assert np.abs(frame.astype(int) - expected).mean() < 4


def test_no_clip_contains_a_frame_of_a_fade(tmp_path, shoot, cut, clips_config):
    import av

    bright = shoot(tmp_path / "a.mp4", [40, 40])
    share = np.clip(np.abs(np.arange(80) - 40) / 10, 0, 1)[:, None, None, None]
    with av.open(str(tmp_path / "fade.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = bright.shape[1], bright.shape[2], "yuv420p"
        for picture in (bright * share).astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    rows = cut(tmp_path / "fade.mp4", tmp_path)
    assert rows["videos"][0]["num_shots"] == 2
    clips_of = [(row["shot"], row["start_frame"], row["end_frame"]) for row in rows["clips"]]
    assert [shot for shot, _, _ in clips_of] == [0, 1]
    assert clips_of[0][2] in (29, 30, 31)
    assert clips_of[1][1] in (50, 51, 52)
    long = ClipsConfig.model_validate(clips_config.model_dump() | {"min_frames": 35, "max_frames": 90})
    (video,) = cut(tmp_path / "fade.mp4", tmp_path, long)["videos"]
    assert video["error_type"] == "no_clips"
    assert "left out as empty or blended by fades and dissolves: clips.shots.find_gradual=false would" in video["error"]
    with_fades = ClipsConfig.model_validate(long.model_dump() | {"shots": {"find_gradual": False}})
    assert cut(tmp_path / "fade.mp4", tmp_path, with_fades)["clips"]


@pytest.mark.slow
def test_first_and_last_frames_of_real_clips_are_those_of_the_source(shared_assets, tmp_path, cut):
    config = ClipsConfig(min_frames=5, max_frames=40, max_side=160, crf=10)
    for name in ("psd_goldeneye-vfr-drop3.mp4", "psd_issue-236-split-copy.mkv", "psd_counter.mp4"):
        rows = cut(shared_assets / "odd" / name, tmp_path, config)
        assert rows["clips"], name
        first_and_last_are_the_source_s(rows, shared_assets / "odd" / name)


def test_salvage_keeps_the_sound_part_of_a_truncated_video(footage, tmp_path, cut):
    assert cut(footage / "truncated.mp4", tmp_path)["clips"] == []
    assert os.listdir(tmp_path / "media") == []
    salvaged = cut(footage / "truncated.mp4", tmp_path, ClipsConfig(min_frames=10, salvage=True))
    [video] = salvaged["videos"]
    assert (video["status"], video["num_clips"]) == ("ok", len(salvaged["clips"]))
    assert video["error"].startswith("salvaged: decoding ends after")
    assert salvaged["clips"][0]["num_frames"] >= 10


def test_a_video_replaced_after_ingest_is_not_taken_for_the_old_one(footage, tmp_path, source, clips_config):
    item = source(footage / "good.mp4", size_bytes=5) | {"attempt": 1, "committed_ids": []}
    rows = cut_video(item, clips_config.model_dump(mode="json"), str(tmp_path), str(tmp_path))
    assert [row["error_type"] for row in rows["videos"]] == ["source_changed"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/film.mp4", "gopher://host/film.mp4"])
def test_a_video_that_cannot_be_fetched_again_is_a_failed_row(footage, tmp_path, uri, source, clips_config):
    item = source(footage / "good.mp4", uri=uri) | {"attempt": 1, "committed_ids": []}
    rows = cut_video(item, clips_config.model_dump(mode="json"), str(tmp_path), str(tmp_path))
    assert [(row["status"], row["error_type"]) for row in rows["videos"]] == [("failed", "unreadable")]
    assert uri in rows["videos"][0]["error"]


def test_clips_that_are_known_get_no_second_row(footage, tmp_path, cut):
    first = cut(footage / "good.mp4", tmp_path)
    committed_ids = [row["clip_id"] for row in first["clips"]] + [row["score_id"] for row in first["scores"][:4]]
    again = cut(footage / "good.mp4", tmp_path, committed_ids=committed_ids)
    assert (len(again["clips"]), len(again["scores"])) == (0, len(first["scores"]) - 4)
    assert again["videos"][0]["clip_ids"] == first["videos"][0]["clip_ids"] == committed_ids[:3]


def test_of_a_finished_clip_no_frames_stay_in_memory(footage, tmp_path, source, clips_config):
    item = source(footage / "good.mp4") | {"attempt": 1, "committed_ids": []}
    cut_clips = VideoPass(item, clips_config, str(tmp_path)).cut()
    assert [clip.num_frames for clip in cut_clips] == [29, 10, 23]
    for clip in cut_clips:
        assert [row["scorer"] for row in clip.scores] == list(IN_DECODE_PASS)
        assert {clip.first.image, clip.first.gray, clip.last.image, clip.last.gray} == {None}


def test_black_bars_are_cut_off_on_request(shoot, tmp_path, cut):
    frames = shoot(tmp_path / "plain.mp4", [30])
    frames[:, :12] = frames[:, -12:] = 0
    write_video(str(tmp_path / "barred.mp4"), frames, fps=24)
    asked, unasked = ClipsConfig(crop_letterbox=True), ClipsConfig()
    rows = cut(tmp_path / "barred.mp4", tmp_path, asked)
    [picture] = rows["clips"]
    assert (picture["height"], picture["width"], picture["crop"]) == (72, 160, [0, 12, 160, 72])
    frame = read_clip(picture["uri"], height=72, width=160, num_frames=1)[0]
    assert np.abs(frame.astype(int) - frames[0, 12:-12]).mean() < 6
    whole = cut(tmp_path / "barred.mp4", tmp_path, unasked)
    assert [(row["height"], row["crop"]) for row in whole["clips"]] == [(96, None)]
    assert whole["clips"][0]["clip_id"] != picture["clip_id"]
    shares = [row["value"] for tables in (whole, rows) for row in tables["scores"] if row["scorer"] == "borders"]
    assert shares == pytest.approx([24 / 96, 0])
    plain = [cut(tmp_path / "plain.mp4", tmp_path, config)["clips"][0]["clip_id"] for config in (asked, unasked)]
    assert plain[0] == plain[1]


@pytest.mark.slow
def test_shared_odd_files_have_their_display_size(shared_assets, tmp_path, cut):
    config = ClipsConfig(min_frames=2, max_side=96, margin_frames=0)
    turned = cut(shared_assets / "odd" / "psd_issue-134-rotate.mp4", tmp_path, config)
    assert all(row["height"] > row["width"] for row in turned["clips"])
    vfr = cut(shared_assets / "odd" / "psd_goldeneye-vfr-drop3.mp4", tmp_path, config)
    assert vfr["videos"][0]["is_vfr"]
    assert all(row["end_s"] > row["start_s"] for row in vfr["clips"])
    # This whole video is a fade to plain grey.
    whole = ClipsConfig.model_validate(config.model_dump() | {"shots": {"find_gradual": False}})
    assert cut(shared_assets / "odd" / "psd_delayed_start.mp4", tmp_path, config)["videos"][0]["status"] == "skipped"
    late = cut(shared_assets / "odd" / "psd_delayed_start.mp4", tmp_path, whole)
    assert (late["videos"][0]["start_pts"], late["clips"][0]["start_s"]) == (13760, 0)
