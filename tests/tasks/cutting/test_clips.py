"""Videos become clips: one row a video whatever it is, frame-exact clips, nothing lost or doubled. About 20 s."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pyramid_model.metrics.scorers import IN_DECODE_PASS
from pyramid_model.video.footage import decode
from pyramid_model.video.video import read_clip, write_video
from tasks.cutting.clips import LEAST_S, MAX_BLOCK, ClipsConfig, VideoWorker, clips, num_portions, share_s
from tasks.cutting.video_pass import VideoPass, cut_video
from tasks.running.run import RayConfig, Run, lineage, params_hash
from tasks.scoring.scores import ScoresConfig, scores
from tasks.sources.ingest import hash_file
from tasks.tables.appending import append_block
from tasks.tables.current import current_clips
from tasks.tables.delta import content_id, ok_row, read_table
from tasks.tables.schemas import ID_COLUMNS

CONFIG = ClipsConfig(min_frames=10, max_frames=30, margin_frames=1, max_side=96)


def run_in(folder, **kwargs) -> Run:
    return Run(root=str(folder / "root"), ray=RayConfig(num_cpus=2), **kwargs)


def source(path, **changes) -> dict:
    """A row of `sources` for a file, as ingest writes it."""
    row = {
        "source_id": content_id(str(path)),
        "video_id": hash_file(str(path))[0],
        "uri": str(path),
        "path": path.name,
        "size_bytes": path.stat().st_size,
        "source": "test",
        "license": "CC0-1.0",
    }
    return row | changes


def ingested(run: Run, folder) -> None:
    """Every file of a folder in `sources`."""
    rows = [ok_row({}, **source(path)) for path in sorted(folder.iterdir())]
    append_block(
        run.root, "sources", rows, content_id([row["source_id"] for row in rows]), lineage(run, "t", "1", CONFIG)
    )


def cut(path, tmp_path, config=CONFIG, known=()) -> dict[str, list[dict]]:
    """Rows of one video, cut in this process."""
    media, staging = tmp_path / "media", tmp_path / "staging"
    media.mkdir(exist_ok=True)
    staging.mkdir(exist_ok=True)
    item = source(path) | {"attempt": 1, "committed_ids": list(known)}
    return cut_video(item, config.model_dump(mode="json"), str(media), str(staging))


@pytest.fixture(scope="module")
def footage(tmp_path_factory, shoot):
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("footage")
    shoot(folder / "good.mp4", [40, 25, 5])
    shoot(folder / "turned.mp4", [20], rotation=90)
    shoot(folder / "short.mp4", [6])
    shoot(folder / "hdr.mp4", [20], transfer=16)
    shoot(folder / "vfr.mkv", [30], times=[*range(0, 600, 40), *range(600, 2100, 100)])
    data = (folder / "good.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: len(data) * 6 // 10])
    (folder / "copy.mp4").write_bytes(data)
    (folder / "text.mp4").write_text("not a video")
    (folder / "zero.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def done(ray_local, tmp_path_factory, footage):
    """(run, result) of the step over that folder."""
    run = run_in(tmp_path_factory.mktemp("done"))
    ingested(run, footage)
    return run, clips(run, CONFIG)


def videos_of(run: Run) -> dict[str, dict]:
    return {row["path"]: row for row in read_table(run.root, "videos").to_pylist()}


@pytest.mark.ray
def test_every_video_ends_in_one_row(done):
    run, result = done
    videos = videos_of(run)
    # The two files with the same bytes are one video.
    assert {name: (row["status"], row["error_type"]) for name, row in videos.items() if "copy" not in name} == {
        "good.mp4": ("ok", ""),
        "turned.mp4": ("ok", ""),
        "vfr.mkv": ("ok", ""),
        "short.mp4": ("skipped", "no_clips"),
        "hdr.mp4": ("skipped", "hdr"),
        "truncated.mp4": ("failed", "truncated"),
        "text.mp4": ("failed", "not_media"),
        "zero.mp4": ("failed", "not_media"),
    }
    assert (result.num_in, result.num_ok, result.num_skipped, result.num_failed) == (8, 3, 2, 3)
    assert (videos["turned.mp4"]["width"], videos["turned.mp4"]["height"]) == (96, 160)
    assert (videos["vfr.mkv"]["is_vfr"], videos["hdr.mp4"]["is_hdr"]) == (True, True)
    assert (videos["good.mp4"]["num_frames"], videos["good.mp4"]["num_shots"], videos["good.mp4"]["num_clips"]) == (
        70,
        3,
        3,
    )


@pytest.mark.ray
def test_clips_are_the_frames_that_they_claim_to_be(done, footage):
    run, _ = done
    rows = current_clips(run.root).to_pylist()
    assert len(rows) == sum(len(row["clip_ids"]) for row in videos_of(run).values() if row["status"] == "ok")
    paths = {row["video_id"]: name for name, row in videos_of(run).items()}
    for row in rows:
        read = read_clip(row["uri"], height=row["height"], width=row["width"])
        source_frames = list(decode(str(footage / paths[row["video_id"]])))
        assert len(read) == row["num_frames"] == row["end_frame"] - row["start_frame"]
        assert source_frames[row["start_frame"]].pts == row["start_pts"] < row["end_pts"]
        assert os.path.getsize(row["uri"]) == row["size_bytes"]
        for got, index in ((read[0], row["start_frame"]), (read[-1], row["end_frame"] - 1)):
            near = source_frames[max(0, index - 1) : index + 2]
            error = [
                np.abs(f.upright(row["height"], row["width"]).to_ndarray(format="rgb24").astype(int) - got).mean()
                for f in near
            ]
            assert near[int(np.argmin(error))].index == index
            assert min(error) < 4


@pytest.mark.ray
def test_long_shots_are_split_short_ones_left_out_and_cuts_given_a_margin(done):
    run, _ = done
    good = videos_of(run)["good.mp4"]["video_id"]
    rows = [row for row in current_clips(run.root).to_pylist() if row["video_id"] == good]
    assert [(row["shot"], row["start_frame"], row["end_frame"]) for row in rows] == [
        (0, 0, 29),
        (0, 29, 39),
        (1, 41, 64),
    ]
    assert {(row["height"], row["width"], row["cut_method"]) for row in rows} == {(58, 96, "adaptive")}
    assert rows[0]["end_s"] == pytest.approx(29 / 24)


@pytest.mark.ray
def test_variable_times_are_kept(done, footage):
    run, _ = done
    rows = [
        row for row in current_clips(run.root).to_pylist() if row["video_id"] == videos_of(run)["vfr.mkv"]["video_id"]
    ]
    assert [row["num_frames"] for row in rows] == [30]
    fps = rows[0]["fps_num"] / rows[0]["fps_den"]
    assert fps == pytest.approx(29 / 2.0, rel=1e-3)
    # Ten frames a second: frames 0, 2 or 3, 5, … in the fast first part, each in the slow last part.
    frames = list(decode(str(footage / "vfr.mkv")))
    read = read_clip(rows[0]["uri"], height=58, width=96, fps=10)
    error = [np.abs(f.upright(58, 96).to_ndarray(format="rgb24").astype(int) - read[-1]).mean() for f in frames]
    assert int(np.argmin(error)) == 29


@pytest.mark.ray
def test_scores_come_from_the_same_pass_and_nothing_is_left_to_do(done):
    run, _ = done
    result = scores(run, ScoresConfig())
    assert (result.num_new, result.num_done) == (0, len(IN_DECODE_PASS) * current_clips(run.root).num_rows)
    assert clips(run, CONFIG).num_new == 0
    assert clips(run, ClipsConfig.model_validate(CONFIG.model_dump() | {"timeout_s": 7})).num_new == 0


@pytest.mark.ray
def test_other_settings_make_other_clips_and_the_old_ones_come_back_for_nothing(ray_local, tmp_path, footage):
    run = run_in(tmp_path)
    (tmp_path / "in").mkdir()
    os.link(footage / "good.mp4", tmp_path / "in" / "good.mp4")
    ingested(run, tmp_path / "in")
    clips(run, CONFIG)
    first = current_clips(run.root, ["clip_id"])
    longer = ClipsConfig.model_validate(CONFIG.model_dump() | {"max_frames": 60})
    assert clips(run, longer).num_ok == 1
    spans = current_clips(run.root, ["start_frame", "end_frame"]).to_pylist()
    assert [(row["start_frame"], row["end_frame"]) for row in spans] == [(0, 39), (41, 64)]
    back = clips(run, CONFIG)
    assert (back.num_new, back.num_done, back.note) == (0, 1, "1 videos use clips of an earlier run again")
    assert current_clips(run.root, ["clip_id"]).equals(first)
    # (41, 64) is the same clip under both settings: one row.
    ids = read_table(run.root, "clips", ["clip_id"], latest=False)["clip_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 4


@pytest.mark.ray
def test_salvage_cuts_the_damaged_videos_alone_and_going_back_cuts_none(ray_local, tmp_path, footage):
    run = run_in(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("good.mp4", "truncated.mp4"):
        os.link(footage / name, tmp_path / "in" / name)
    ingested(run, tmp_path / "in")
    salvage = ClipsConfig.model_validate(CONFIG.model_dump() | {"salvage": True})
    results = [clips(run, config) for config in (CONFIG, salvage, CONFIG, salvage)]
    assert [(one.num_ok, one.num_failed, one.num_done) for one in results] == [
        (1, 1, 0),
        (1, 0, 1),
        (0, 0, 2),
        (0, 0, 2),
    ]
    assert {name: row["status"] for name, row in videos_of(run).items()} == {"good.mp4": "ok", "truncated.mp4": "ok"}
    # The row of the good video is appended again, too: it says with which settings its clips are current.
    assert [(row["attempt"], row["params_hash"]) for row in videos_of(run).values()] == [(4, params_hash(salvage))] * 2


@pytest.mark.ray
@pytest.mark.parametrize("committed", [("clips",), ("clips", "scores")])
def test_a_run_killed_between_two_commits_is_completed_without_doubles(ray_local, tmp_path, footage, committed):
    run = run_in(tmp_path)
    (tmp_path / "in").mkdir()
    os.link(footage / "good.mp4", tmp_path / "in" / "good.mp4")
    ingested(run, tmp_path / "in")
    rows = cut(tmp_path / "in" / "good.mp4", tmp_path)
    for table in committed:
        append_block(run.root, table, rows[table], content_id(table), lineage(run, "clips", "1", CONFIG))
    assert clips(run, CONFIG).num_ok == 1
    for table in ("clips", "scores", "videos"):
        ids = read_table(run.root, table, [ID_COLUMNS[table]], latest=False)[ID_COLUMNS[table]].to_pylist()
        assert sorted(ids) == sorted(row[ID_COLUMNS[table]] for row in rows[table])
    assert current_clips(run.root).num_rows == 3


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
            shown = [frame.upright(row["height"], row["width"]).to_ndarray(format="rgb24") for frame in near]
            errors = [np.abs(picture.astype(int) - got).mean() for picture in shown]
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
def test_first_and_last_frames_of_clips_are_those_of_the_source(tmp_path, shoot, name, options):
    shoot(tmp_path / name, [25, 15], **options)
    config = ClipsConfig(min_frames=5, max_frames=12, margin_frames=1, overlap_frames=3, crf=10)
    rows = cut(tmp_path / name, tmp_path, config)
    spans = [(row["shot"], row["start_frame"], row["end_frame"]) for row in rows["clips"]]
    assert spans == [(0, 0, 12), (0, 9, 21), (0, 18, 24), (1, 26, 38), (1, 35, 40)][: len(spans)]
    assert len(spans) == 5
    assert {(row["height"] % 2, row["width"] % 2) for row in rows["clips"]} == {(0, 0)}
    assert rows["clips"][0]["start_s"] == 0
    first_and_last_are_the_source_s(rows, tmp_path / name)


def test_a_video_of_one_frame_has_a_reason_and_no_clip(tmp_path, shoot):
    shoot(tmp_path / "one.mp4", [1])
    [video] = cut(tmp_path / "one.mp4", tmp_path)["videos"]
    assert (video["status"], video["error_type"], video["num_frames"]) == ("skipped", "no_clips", 1)
    assert "find_gradual" not in video["error"]  # nothing is blended


@pytest.mark.parametrize(("name", "orientation", "size"), [("a.png", 1, (90, 160)), ("b.jpg", 6, (160, 90))])
def test_a_picture_is_a_clip_of_one_frame_as_it_is_shown(tmp_path, name, orientation, size):
    from PIL import Image

    down, across = np.mgrid[:90, :160]
    pixels = np.stack([across, 2 * down, 255 - across], axis=-1).astype(np.uint8)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / name, exif=exif)
    (row,) = cut(tmp_path / name, tmp_path, ClipsConfig(min_frames=25))["clips"]
    assert (row["num_frames"], row["height"], row["width"]) == (1, *size)
    (shown,) = read_clip(row["uri"], height=size[0], width=size[1], fps=24, num_frames=1)
    expected = pixels if orientation == 1 else np.rot90(pixels, -1)
    assert np.abs(shown.astype(int) - expected).mean() < 4


def test_no_clip_contains_a_frame_of_a_fade(tmp_path, shoot):
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
    long = ClipsConfig.model_validate(CONFIG.model_dump() | {"min_frames": 35, "max_frames": 90})
    (video,) = cut(tmp_path / "fade.mp4", tmp_path, long)["videos"]
    assert video["error_type"] == "no_clips"
    assert "left out as empty or blended by fades and dissolves: clips.shots.find_gradual=false would" in video["error"]
    kept = ClipsConfig.model_validate(long.model_dump() | {"shots": {"find_gradual": False}})
    assert cut(tmp_path / "fade.mp4", tmp_path, kept)["clips"]


@pytest.mark.slow
def test_first_and_last_frames_of_real_clips_are_those_of_the_source(shared_assets, tmp_path):
    config = ClipsConfig(min_frames=5, max_frames=40, max_side=160, crf=10)
    for name in ("psd_goldeneye-vfr-drop3.mp4", "psd_issue-236-split-copy.mkv", "psd_counter.mp4"):
        rows = cut(shared_assets / "odd" / name, tmp_path, config)
        assert rows["clips"], name
        first_and_last_are_the_source_s(rows, shared_assets / "odd" / name)


def test_salvage_keeps_the_sound_part_of_a_truncated_video(footage, tmp_path):
    assert cut(footage / "truncated.mp4", tmp_path)["clips"] == []
    assert os.listdir(tmp_path / "media") == []
    salvaged = cut(footage / "truncated.mp4", tmp_path, ClipsConfig(min_frames=10, salvage=True))
    [video] = salvaged["videos"]
    assert (video["status"], video["num_clips"]) == ("ok", len(salvaged["clips"]))
    assert video["error"].startswith("salvaged: decoding ends after")
    assert salvaged["clips"][0]["num_frames"] >= 10


def test_a_video_replaced_after_ingest_is_not_taken_for_the_old_one(footage, tmp_path):
    item = source(footage / "good.mp4", size_bytes=5) | {"attempt": 1, "committed_ids": []}
    rows = cut_video(item, CONFIG.model_dump(mode="json"), str(tmp_path), str(tmp_path))
    assert [row["error_type"] for row in rows["videos"]] == ["source_changed"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/film.mp4", "gopher://host/film.mp4"])
def test_a_video_that_cannot_be_fetched_again_is_a_failed_row(footage, tmp_path, uri):
    item = source(footage / "good.mp4", uri=uri) | {"attempt": 1, "committed_ids": []}
    rows = cut_video(item, CONFIG.model_dump(mode="json"), str(tmp_path), str(tmp_path))
    assert [(row["status"], row["error_type"]) for row in rows["videos"]] == [("failed", "unreadable")]
    assert uri in rows["videos"][0]["error"]


def test_clips_that_are_known_get_no_second_row(footage, tmp_path):
    first = cut(footage / "good.mp4", tmp_path)
    known = [row["clip_id"] for row in first["clips"]] + [row["score_id"] for row in first["scores"][:4]]
    again = cut(footage / "good.mp4", tmp_path, known=known)
    assert (len(again["clips"]), len(again["scores"])) == (0, len(first["scores"]) - 4)
    assert again["videos"][0]["clip_ids"] == first["videos"][0]["clip_ids"] == known[:3]


def test_of_a_finished_clip_no_frames_stay_in_memory(footage, tmp_path):
    item = source(footage / "good.mp4") | {"attempt": 1, "committed_ids": []}
    cut_clips = VideoPass(item, CONFIG, str(tmp_path)).cut()
    assert [clip.num_frames for clip in cut_clips] == [29, 10, 23]
    for clip in cut_clips:
        assert [row["scorer"] for row in clip.scores] == list(IN_DECODE_PASS)
        assert {clip.first.image, clip.first.gray, clip.last.image, clip.last.gray} == {None}


def test_black_bars_are_cut_off_on_request(shoot, tmp_path):
    frames = shoot(tmp_path / "plain.mp4", [30])
    frames[:, :12] = frames[:, -12:] = 0
    write_video(str(tmp_path / "barred.mp4"), frames, fps=24)
    asked, unasked = ClipsConfig(crop_letterbox=True), ClipsConfig()
    rows = cut(tmp_path / "barred.mp4", tmp_path, asked)
    [picture] = rows["clips"]
    assert (picture["height"], picture["width"], picture["crop"]) == (72, 160, [0, 12, 160, 72])
    shown = read_clip(picture["uri"], height=72, width=160, num_frames=1)[0]
    assert np.abs(shown.astype(int) - frames[0, 12:-12]).mean() < 6
    whole = cut(tmp_path / "barred.mp4", tmp_path, unasked)
    assert [(row["height"], row["crop"]) for row in whole["clips"]] == [(96, None)]
    assert whole["clips"][0]["clip_id"] != picture["clip_id"]
    shares = [row["value"] for found in (whole, rows) for row in found["scores"] if row["scorer"] == "borders"]
    assert shares == pytest.approx([24 / 96, 0])
    plain = [cut(tmp_path / "plain.mp4", tmp_path, config)["clips"][0]["clip_id"] for config in (asked, unasked)]
    assert plain[0] == plain[1]


def worker_in(tmp_path, **changes) -> VideoWorker:
    (tmp_path / "media").mkdir()
    return VideoWorker(CONFIG.model_dump(mode="json") | changes, str(tmp_path / "media"))


def test_a_video_that_takes_too_long_becomes_a_row_and_leaves_nothing(footage, tmp_path):
    worker = worker_in(tmp_path, timeout_s=0.05)
    item = source(footage / "good.mp4") | {"attempt": 1, "committed_ids": []}
    rows = worker([item]).rows
    assert [(row["status"], row["error_type"]) for row in rows["videos"]] == [("failed", "timeout")]
    assert os.listdir(tmp_path / "media") == []
    worker.settings = worker.settings.model_copy(update={"timeout_s": 120})
    assert worker([item]).rows["videos"][0]["status"] == "ok"
    worker.child.close()


def test_a_decoder_that_dies_becomes_a_row_and_the_next_video_is_cut(footage, tmp_path):
    worker = worker_in(tmp_path)
    items = [source(footage / name) | {"attempt": 1, "committed_ids": []} for name in ("good.mp4", "turned.mp4")]

    def shoot_down():
        while worker.child._child is None:
            time.sleep(0.01)
        os.kill(worker.child._child.pid, signal.SIGSEGV)

    threading.Thread(target=shoot_down, daemon=True).start()
    rows = worker(items).rows
    assert [row.get("error_type") for row in rows["videos"]] == ["decoder_crashed", None]
    assert {row["video_id"] for row in rows["clips"]} == {items[1]["video_id"]}
    worker.child.close()


def test_a_full_disk_stops_the_step_and_leaves_nothing_half_written(footage, tmp_path):
    code = (
        "import json, os, resource, signal, sys\nfrom tasks.cutting.video_pass import cut_video\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n    cut_video(**json.loads(sys.argv[1]))\nexcept OSError as err:\n    print('OSError', err.errno)\n"
    )
    for name in ("media", "staging"):
        (tmp_path / name).mkdir()
    arguments = {
        "item": source(footage / "good.mp4") | {"attempt": 1, "committed_ids": []},
        "config": CONFIG.model_dump(mode="json"),
        "media": str(tmp_path / "media"),
        "staging": str(tmp_path / "staging"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "OSError 27\n", done.stderr
    assert os.listdir(tmp_path / "media") == []


@pytest.mark.slow
def test_shared_odd_files_have_their_display_size(shared_assets, tmp_path):
    config = ClipsConfig(min_frames=2, max_side=96, margin_frames=0)
    turned = cut(shared_assets / "odd" / "psd_issue-134-rotate.mp4", tmp_path, config)
    assert all(row["height"] > row["width"] for row in turned["clips"])
    vfr = cut(shared_assets / "odd" / "psd_goldeneye-vfr-drop3.mp4", tmp_path, config)
    assert vfr["videos"][0]["is_vfr"]
    assert all(row["end_s"] > row["start_s"] for row in vfr["clips"])
    # All of it fades in, to plain grey.
    whole = ClipsConfig.model_validate(config.model_dump() | {"shots": {"find_gradual": False}})
    assert cut(shared_assets / "odd" / "psd_delayed_start.mp4", tmp_path, config)["videos"][0]["status"] == "skipped"
    late = cut(shared_assets / "odd" / "psd_delayed_start.mp4", tmp_path, whole)
    assert (late["videos"][0]["start_pts"], late["clips"][0]["start_s"]) == (13760, 0)


def test_one_bad_video_of_a_block_is_one_failed_row_and_the_other_fifteen_are_cut(shoot, tmp_path):
    for number in range(16):
        shoot(tmp_path / f"{number:02}.mp4", [12], size=(32 + 2 * number, 64), audio_s=0.1 * number)
    (tmp_path / "07.mp4").write_bytes((tmp_path / "07.mp4").read_bytes().replace(b"avc1", b"zzz9"))
    worker = worker_in(tmp_path)
    rows = worker([source(path) | {"attempt": 1, "committed_ids": []} for path in sorted(tmp_path.glob("*.mp4"))]).rows
    worker.child.close()
    assert [row["error_type"] for row in rows["videos"] if row["status"] != "ok"] == ["no_decoder"]
    assert (len(rows["videos"]), len({row["video_id"] for row in rows["clips"]})) == (16, 15)


def test_a_video_that_would_fill_the_memory_becomes_a_row(footage, tmp_path):
    item = source(footage / "good.mp4") | {"attempt": 1, "committed_ids": []}
    worker = worker_in(tmp_path, max_memory_gb=0.05)
    [row] = worker([item]).rows["videos"]
    assert (row["status"], row["error_type"]) == ("failed", "too_much_memory")
    assert "lower clips.max_side, or raise clips.max_memory_gb" in row["error"]
    assert os.listdir(tmp_path / "media") == []
    [row] = cut(footage / "good.mp4", tmp_path, ClipsConfig(max_megapixels=0.01))["videos"]
    assert (row["status"], row["error_type"]) == ("failed", "too_large")


def test_videos_that_hang_leave_the_others_of_their_block_their_time():
    left_s, given = 1600.0, []
    for num_after in reversed(range(MAX_BLOCK)):
        given.append(min(1500.0, share_s(left_s, num_after)))
        left_s -= given[-1]
    assert (min(given), left_s) == (LEAST_S, 0)
    assert share_s(1600, 0) == 1600


def test_a_film_has_as_much_more_time_as_it_is_larger(footage, tmp_path, monkeypatch):
    item = source(footage / "good.mp4") | {"attempt": 1, "committed_ids": []}
    assert [num_portions(item | {"size_bytes": size}) for size in (0, 1, 2**27, 2**27 + 1, 2**32)] == [1, 1, 1, 2, 32]
    worker = worker_in(tmp_path, timeout_s=0.05)
    assert worker([item]).rows["videos"][0]["error_type"] == "timeout"
    monkeypatch.setattr("tasks.cutting.clips.MAX_BLOCK_BYTES", item["size_bytes"] / 2400)
    assert worker([item]).rows["videos"][0]["status"] == "ok"  # two minutes
    worker.child.close()


def test_limits_that_change_no_clip_redo_nothing():
    loose = ClipsConfig(max_memory_gb=9, max_megapixels=99, timeout_s=7)
    assert params_hash(loose) == params_hash(ClipsConfig())
    assert ClipsConfig.model_validate(loose.model_dump()) == loose
