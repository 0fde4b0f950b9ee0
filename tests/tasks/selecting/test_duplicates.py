"""Copies of real clips are found, other clips are left alone, and the clip to keep is always the same. About 10 s."""

import json
import os

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from pyramid_model.video.video import write_video
from tasks.cutting.clips import ClipsConfig
from tasks.cutting.video_pass import cut_video
from tasks.running.run import Run, lineage, params_hash
from tasks.selecting.duplicates import DuplicatesConfig, duplicates, groups_by_method, keeping_order, mean_embeddings
from tasks.tables.appending import append_block
from tasks.tables.blobs import tensor_bytes
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.delta import read_table
from tasks.tables.rows import Lineage, bad_row, ok_row

CUT = ClipsConfig(min_frames=9, crf=18, preset="ultrafast")
FPS = 24


def scene(seed: int, num_frames: int = 36, size: tuple[int, int] = (108, 192)) -> np.ndarray:
    """A texture that wanders, (t h w 3) uint8; like most pictures it is the stronger the coarser."""
    rng = np.random.default_rng(seed)
    wide = np.full((*size, 3), 128.0)
    for cells, strength in ((4, 60), (8, 30), (16, 15), (32, 8)):
        grid = rng.uniform(-strength, strength, (cells, 2 * cells, 3))
        wide += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)
    wide = np.clip(wide, 0, 255).astype(np.uint8)
    return np.stack([np.roll(wide, frame, axis=1) for frame in range(num_frames)])


def scaled(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


class Footage:
    """Cuts and scores films as the clips step does, each in this process; `clips[name]` are a film's clips in order."""

    def __init__(self, folder):
        self.folder, self.run, self.clips = folder, Run(root=str(folder / "root")), {}
        os.makedirs(self.run.media("clips"))

    def film(self, name: str, *shots: np.ndarray, fps: float = FPS, crf: int = 12) -> None:
        write_video(str(self.folder / name), np.concatenate(shots), fps=fps, crf=crf)
        self.cut(name)

    def rewrap(self, name: str, into: str) -> None:
        """The same pictures in another container."""
        with av.open(str(self.folder / name)) as old, av.open(str(self.folder / into), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(old.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        self.cut(into)

    def cut(self, name: str) -> None:
        path = self.folder / name
        video_id = content_id(path.read_bytes())
        item = {"video_id": video_id, "uri": str(path), "path": name, "size_bytes": path.stat().st_size}
        item |= {"source": "", "license": "", "attempt": 1, "committed_ids": []}
        staging = self.folder / f"staging-{name}"
        staging.mkdir()
        rows = cut_video(item, CUT.model_dump(mode="json"), self.run.media("clips"), str(staging))
        source = {"source_id": content_id(name), "video_id": video_id, "uri": str(path)}
        for table, table_rows in (rows | {"sources": [ok_row({}, **source)]}).items():
            append_block(self.run.root, table, table_rows, f"{table} {name}", lineage(self.run, "clips", "1", CUT))
        self.clips[name] = rows["videos"][0].get("clip_ids", [])

    def groups(self, method: str) -> set[frozenset[str]]:
        """Groups of one method, clips by film and place: `{"a.mp4 0", "small.mp4 0"}`."""
        names = {clip: f"{film} {place}" for film, clips in self.clips.items() for place, clip in enumerate(clips)}
        return {frozenset(names[clip] for clip in group) for group in groups_by_method(self.run.root)[method]}

    def keepers(self) -> set[str]:
        rows = read_table(self.run.root, "duplicates").to_pylist()
        names = {clip: f"{film} {place}" for film, clips in self.clips.items() for place, clip in enumerate(clips)}
        return {names[row["clip_id"]] for row in rows if row["keeper"] and row["method"] == "phash"}


A, B = scene(1), scene(2)
COPIES = {
    "small.mp4": lambda f: {"shots": scaled(f, 72, 128), "crf": 30},
    "cropped.mp4": lambda f: {"shots": f[:, 2:-2, 2:-2], "crf": 20},
    "bright.mp4": lambda f: {"shots": np.clip(f * 0.8 + 40.0, 0, 255).astype(np.uint8)},
    "late.mp4": lambda f: {"shots": f[4:]},
    "slow.mp4": lambda f: {"shots": f[::2], "fps": FPS / 2},
}


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """A film of two shots with a copy of its first shot in many forms, another film, and two black ones."""
    made = Footage(tmp_path_factory.mktemp("footage"))
    made.film("a.mp4", A, B)
    for name, change in COPIES.items():
        changed = change(A)
        made.film(name, changed.pop("shots"), **changed)
    made.rewrap("a.mp4", "same.mkv")
    made.film("other.mp4", scene(3))
    for name in ("black.mp4", "black2.mp4"):
        made.film(name, np.zeros_like(A) + len(name))
    return made


def test_copies_in_every_form_are_one_group_and_other_scenes_are_in_none(footage):
    result = duplicates(footage.run, DuplicatesConfig())
    assert len(footage.clips["a.mp4"]) == 2
    copies = {f"{name} 0" for name in (*COPIES, "a.mp4", "same.mkv")}
    assert footage.groups("phash") == {frozenset(copies), frozenset({"a.mp4 1", "same.mkv 1"})}
    assert footage.groups("exact") == {frozenset({f"a.mp4 {n}", f"same.mkv {n}"}) for n in (0, 1)}
    assert result.num_in == sum(map(len, footage.clips.values()))
    assert result.note.startswith(f"7 of {result.num_in} clips repeat others (exact 2, phash 7)")


def test_a_run_with_nothing_new_writes_nothing(footage):
    duplicates(footage.run, DuplicatesConfig())
    again = duplicates(footage.run, DuplicatesConfig())
    assert (again.num_new, again.rows, again.num_done) == (0, {}, again.num_in)


def test_only_groups_that_changed_are_written_again_and_settings_come_back(footage):
    duplicates(footage.run, DuplicatesConfig())
    every = footage.groups("phash")
    fewer = duplicates(footage.run, DuplicatesConfig(methods=("exact",)))
    assert fewer.rows == {"duplicates": 9}  # those of phash leave, those of exact stay as they are
    assert footage.groups("phash") == set()
    assert len(footage.groups("exact")) == 2
    assert duplicates(footage.run, DuplicatesConfig()).rows == {"duplicates": 9}
    assert footage.groups("phash") == every


def test_the_clip_with_the_most_detail_is_kept_whatever_came_first(footage, tmp_path):
    duplicates(footage.run, DuplicatesConfig())
    keepers = footage.keepers()
    assert len(keepers) == 2
    assert not keepers & {"small.mp4 0", "cropped.mp4 0", "slow.mp4 0", "late.mp4 0"}
    backwards = Footage(tmp_path)
    backwards.film("small.mp4", scaled(A, 72, 128), crf=30)
    backwards.film("late.mp4", A[4:])
    duplicates(backwards.run, DuplicatesConfig())
    backwards.film("a.mp4", A, B)
    assert backwards.keepers() == {"late.mp4 0"}
    duplicates(backwards.run, DuplicatesConfig())
    assert backwards.keepers() == {"a.mp4 0"}


def test_clips_that_are_no_longer_cut_leave_their_group(tmp_path):
    made = Footage(tmp_path)
    made.film("a.mp4", A)
    made.film("late.mp4", A[4:])
    duplicates(made.run, DuplicatesConfig())
    assert len(made.groups("phash")) == 1
    video = read_table(made.run.root, "videos").to_pylist()[0]
    gone = ok_row({"attempt": 2}, video_id=video["video_id"], clip_ids=[])
    append_block(made.run.root, "videos", [gone], "gone", lineage(made.run, "clips", "1", CUT))
    duplicates(made.run, DuplicatesConfig())
    assert made.groups("phash") == set()
    rows = read_table(made.run.root, "duplicates").to_pylist()
    assert {(row["status"], row["error_type"], row["keeper"]) for row in rows} == {("skipped", "left_group", False)}


def test_searches_among_clips_of_other_settings_leave_each_other_alone(tmp_path):
    made = Footage(tmp_path)
    for name, shots in (("a.mp4", A), ("late.mp4", A[4:]), ("b.mp4", B), ("other.mp4", B[4:])):
        made.film(name, shots)
    ours, theirs = params_hash(CUT), params_hash(ClipsConfig(min_frames=10))
    of_b = [*made.clips["b.mp4"], *made.clips["other.mp4"]]
    rows = read_table(made.run.root, "videos").to_pylist()
    theirs_rows = [
        ok_row({"attempt": 2}, video_id=row["video_id"], clip_ids=[clip for clip in row["clip_ids"] if clip in of_b])
        for row in rows
    ]
    append_block(made.run.root, "videos", theirs_rows, "theirs", Lineage("run", "clips", "1", theirs, ""))
    both = {frozenset({"a.mp4 0", "late.mp4 0"}), frozenset({"b.mp4 0", "other.mp4 0"})}
    for _ in range(2):
        duplicates(made.run, DuplicatesConfig(clips=ours))
        assert made.groups("phash") == both
        duplicates(made.run, DuplicatesConfig(clips=theirs))
        assert made.groups("phash") == {frozenset({"b.mp4 0", "other.mp4 0"})}
        assert len(groups_by_method(made.run.root, ours)["phash"]) == 2


def embedding_row(clip: str, attempt: int, features: torch.Tensor | None) -> dict:
    """A row of `embeddings`; a failed one without features (n d)."""
    item = {"attempt": attempt}
    columns = {"embedding_id": content_id(clip, "m"), "clip_id": clip, "model_hash": "m", "sampling": "s"}
    if features is None:
        return bad_row(item, ("truncated", "the clip ends early"), **columns)
    data = tensor_bytes(features, "float16")
    blob = {"shape": list(features.shape), "dtype": "float16", "embedding": data, "crc32": crc32(data)}
    return ok_row(item, **columns, **blob)


def test_of_several_attempts_at_an_embedding_the_last_one_counts(tmp_path):
    root, made = str(tmp_path), lineage(Run(root=str(tmp_path)), "scores", "1", CUT)
    x, y = torch.eye(2).unsqueeze(1)
    attempts = {"failed, ok": (None, x), "ok, failed": (x, None), "ok, other ok": (x, y)}
    for number in (1, 2):
        rows = [embedding_row(clip, number, features[number - 1]) for clip, features in attempts.items()]
        append_block(root, "embeddings", rows, f"attempt {number}", made)
    at, means = mean_embeddings(root, list(attempts))
    assert at.tolist() == [0, 2]
    np.testing.assert_array_equal(means, [[1, 0], [0, 1]])


def test_embeddings_that_point_one_way_are_alike(footage):
    run = footage.run
    with pytest.raises(ValueError, match=r"no clip has an embedding.*remove the method"):
        duplicates(run, DuplicatesConfig(methods=("semantic",)))
    ids = [clip for clips in footage.clips.values() for clip in clips]
    rng = torch.Generator().manual_seed(0)
    direction = {clip: torch.randn(16, generator=rng) for clip in ids}
    direction[ids[3]] = direction[ids[0]] * 2
    rows = [embedding_row(clip, 1, direction[clip].repeat(2, 1)) for clip in ids]
    append_block(run.root, "embeddings", rows, "embeddings", lineage(run, "scores", "1", CUT))
    duplicates(run, DuplicatesConfig(methods=("semantic",)))
    (group,) = groups_by_method(run.root)["semantic"]
    assert set(group) == {ids[0], ids[3]}


def test_without_clips_no_method_finds_anything_amiss(tmp_path):
    result = duplicates(Run(root=str(tmp_path)), DuplicatesConfig(methods=("exact", "phash", "semantic")))
    assert (result.num_in, result.rows, result.note) == (0, {}, "0 of 0 clips repeat others")


def test_without_hashes_the_settings_to_change_are_named(tmp_path):
    made = Footage(tmp_path)
    made.film("a.mp4", A)
    rows = read_table(made.run.root, "scores").to_pylist()
    assert json.loads(next(row["details"] for row in rows if row["scorer"] == "phash"))["hashes"]
    lost = [{name: row[name] for name in ("score_id", "clip_id", "scorer")} for row in rows if row["scorer"] == "phash"]
    failed = {"status": "failed", "error_type": "missing", "attempt": 2}
    append_block(made.run.root, "scores", [lost[0] | failed], "lost", lineage(made.run, "scores", "1", CUT))
    with pytest.raises(ValueError, match=r"no clip has a perceptual hash.*add phash to scores\.scorers"):
        duplicates(made.run, DuplicatesConfig())


def test_the_order_of_keeping_is_pixels_then_frames_then_bytes_then_id():
    clips = [
        {"clip_id": "e", "width": 64, "size_bytes": 900, "num_frames": 50},
        {"clip_id": "d", "width": 128, "size_bytes": 100, "num_frames": 10},
        {"clip_id": "c", "width": 64, "size_bytes": 800, "num_frames": 90},
        {"clip_id": "b", "width": 64, "size_bytes": 901, "num_frames": 52},
        {"clip_id": "a", "width": 64, "size_bytes": 900, "num_frames": 50},
    ]
    order = keeping_order(pa.Table.from_pylist([clip | {"height": 36} for clip in clips]))
    assert [clips[place]["clip_id"] for place in np.argsort(order)] == ["d", "c", "b", "a", "e"]
