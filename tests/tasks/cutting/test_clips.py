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
from pyramid_model.video.video import read_clip
from tasks.cutting.clips import LEAST_S, MAX_BLOCK, ClipsConfig, VideoWorker, clips, num_portions, share_s
from tasks.running.run import RayConfig, Run, lineage, params_hash
from tasks.scoring.scores import ScoresConfig, scores
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.current import current_clips
from tasks.tables.delta import read_table
from tasks.tables.rows import ok_row
from tasks.tables.schemas import ID_COLUMNS


def run_in(folder, **kwargs) -> Run:
    return Run(root=str(folder / "root"), ray=RayConfig(num_cpus=2), **kwargs)


def ingested(run: Run, folder, source) -> None:
    """Every file of a folder in `sources`."""
    rows = [ok_row({}, **source(path)) for path in sorted(folder.iterdir())]
    append_block(
        run.root, "sources", rows, content_id([row["source_id"] for row in rows]), lineage(run, "t", "1", ClipsConfig())
    )


@pytest.fixture(scope="module")
def done(ray_local, tmp_path_factory, footage, clips_config, source):
    """(run, result) of the step over that folder."""
    run = run_in(tmp_path_factory.mktemp("done"))
    ingested(run, footage, source)
    return run, clips(run, clips_config)


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
def test_scores_come_from_the_same_pass_and_nothing_is_left_to_do(done, clips_config):
    run, _ = done
    result = scores(run, ScoresConfig())
    assert (result.num_new, result.num_done) == (0, len(IN_DECODE_PASS) * current_clips(run.root).num_rows)
    assert clips(run, clips_config).num_new == 0
    assert clips(run, ClipsConfig.model_validate(clips_config.model_dump() | {"timeout_s": 7})).num_new == 0


@pytest.mark.ray
def test_other_settings_make_other_clips_and_the_old_ones_come_back_for_nothing(
    ray_local, tmp_path, footage, clips_config, source
):
    run = run_in(tmp_path)
    (tmp_path / "in").mkdir()
    os.link(footage / "good.mp4", tmp_path / "in" / "good.mp4")
    ingested(run, tmp_path / "in", source)
    clips(run, clips_config)
    first = current_clips(run.root, ["clip_id"])
    longer = ClipsConfig.model_validate(clips_config.model_dump() | {"max_frames": 60})
    assert clips(run, longer).num_ok == 1
    spans = current_clips(run.root, ["start_frame", "end_frame"]).to_pylist()
    assert [(row["start_frame"], row["end_frame"]) for row in spans] == [(0, 39), (41, 64)]
    back = clips(run, clips_config)
    assert (back.num_new, back.num_done, back.note) == (0, 1, "1 videos use clips of an earlier run again")
    assert current_clips(run.root, ["clip_id"]).equals(first)
    # (41, 64) is the same clip under both settings: one row.
    ids = read_table(run.root, "clips", ["clip_id"], newest=False)["clip_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 4


@pytest.mark.ray
def test_salvage_cuts_the_damaged_videos_alone_and_going_back_cuts_none(
    ray_local, tmp_path, footage, clips_config, source
):
    run = run_in(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("good.mp4", "truncated.mp4"):
        os.link(footage / name, tmp_path / "in" / name)
    ingested(run, tmp_path / "in", source)
    salvage = ClipsConfig.model_validate(clips_config.model_dump() | {"salvage": True})
    results = [clips(run, config) for config in (clips_config, salvage, clips_config, salvage)]
    assert [(result.num_ok, result.num_failed, result.num_done) for result in results] == [
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
def test_a_run_killed_between_two_commits_is_completed_without_doubles(
    ray_local, tmp_path, footage, committed, cut, clips_config, source
):
    run = run_in(tmp_path)
    (tmp_path / "in").mkdir()
    os.link(footage / "good.mp4", tmp_path / "in" / "good.mp4")
    ingested(run, tmp_path / "in", source)
    rows = cut(tmp_path / "in" / "good.mp4", tmp_path)
    for table in committed:
        append_block(run.root, table, rows[table], content_id(table), lineage(run, "clips", "1", clips_config))
    assert clips(run, clips_config).num_ok == 1
    for table in ("clips", "scores", "videos"):
        ids = read_table(run.root, table, [ID_COLUMNS[table]], newest=False)[ID_COLUMNS[table]].to_pylist()
        assert sorted(ids) == sorted(row[ID_COLUMNS[table]] for row in rows[table])
    assert current_clips(run.root).num_rows == 3


@pytest.fixture
def worker_in(clips_config):
    """Makes a worker whose clips are in a folder."""

    def worker(tmp_path, **changes) -> VideoWorker:
        (tmp_path / "media").mkdir()
        return VideoWorker(clips_config.model_dump(mode="json") | changes, str(tmp_path / "media"))

    return worker


def test_a_video_that_takes_too_long_becomes_a_row_and_leaves_nothing(footage, tmp_path, source, worker_in):
    worker = worker_in(tmp_path, timeout_s=0.05)
    item = source(footage / "good.mp4") | {"attempt": 1, "committed_ids": []}
    rows = worker([item]).rows
    assert [(row["status"], row["error_type"]) for row in rows["videos"]] == [("failed", "timeout")]
    assert os.listdir(tmp_path / "media") == []
    worker.settings = worker.settings.model_copy(update={"timeout_s": 120})
    assert worker([item]).rows["videos"][0]["status"] == "ok"
    worker.child.close()


def test_a_decoder_that_dies_becomes_a_row_and_the_next_video_is_cut(footage, tmp_path, source, worker_in):
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


def test_a_full_disk_stops_the_step_and_leaves_nothing_half_written(footage, tmp_path, source, clips_config):
    code = (
        "import json, os, resource, signal, sys\nfrom tasks.cutting.video_pass import cut_video\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n    cut_video(**json.loads(sys.argv[1]))\nexcept OSError as err:\n    print('OSError', err.errno)\n"
    )
    for name in ("media", "staging"):
        (tmp_path / name).mkdir()
    arguments = {
        "item": source(footage / "good.mp4") | {"attempt": 1, "committed_ids": []},
        "config": clips_config.model_dump(mode="json"),
        "media": str(tmp_path / "media"),
        "staging": str(tmp_path / "staging"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "OSError 27\n", done.stderr
    assert os.listdir(tmp_path / "media") == []


def test_one_bad_video_of_a_block_is_one_failed_row_and_the_other_fifteen_are_cut(shoot, tmp_path, source, worker_in):
    for number in range(16):
        shoot(tmp_path / f"{number:02}.mp4", [12], size=(32 + 2 * number, 64), audio_s=0.1 * number)
    (tmp_path / "07.mp4").write_bytes((tmp_path / "07.mp4").read_bytes().replace(b"avc1", b"zzz9"))
    worker = worker_in(tmp_path)
    rows = worker([source(path) | {"attempt": 1, "committed_ids": []} for path in sorted(tmp_path.glob("*.mp4"))]).rows
    worker.child.close()
    assert [row["error_type"] for row in rows["videos"] if row["status"] != "ok"] == ["no_decoder"]
    assert (len(rows["videos"]), len({row["video_id"] for row in rows["clips"]})) == (16, 15)


def test_a_video_that_would_fill_the_memory_becomes_a_row(footage, tmp_path, cut, source, worker_in):
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


def test_a_film_has_as_much_more_time_as_it_is_larger(footage, tmp_path, monkeypatch, source, worker_in):
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
