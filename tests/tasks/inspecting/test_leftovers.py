"""`manifest vacuum` removes files that nothing uses, and no others."""

import os
import shutil
from pathlib import Path

import pytest

from tasks.inspecting.leftovers import vacuum
from tasks.inspecting.verify import verify
from tasks.tables.appending import append_block
from tasks.tables.delta import DamagedTableError
from tasks.tables.rows import Lineage, ok_row


def test_vacuum_removes_nothing_when_a_table_cannot_be_read(small):
    for path in Path(small.root, "tables", "clips").glob("*.parquet"):
        path.unlink()
    with pytest.raises(DamagedTableError, match="parquet is missing"):
        vacuum(small.root, older_than_h=0, delete=True)
    assert Path(small.root, "media", "clips", f"{small.clip_id(1)}.mp4").exists()


def test_vacuum_lists_and_then_removes_trainings_that_nobody_goes_on_with_and_empty_folders(small):
    state = Path(small.root, "checkpoints", "model", "state.pt")
    old = Path(small.root, "checkpoints", "old", "ray", "settings.json")
    empty = Path(small.root, "media", "clips", ".writing-y")
    for path in (state, old):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"state")
    empty.mkdir()
    for path in (old, empty):
        os.utime(path, (0, 0))
    assert vacuum(small.root) == ["checkpoints/old", "media/clips/.writing-y"]
    assert vacuum(small.root, delete=True) == ["checkpoints/old", "media/clips/.writing-y"]
    assert (state.exists(), old.parents[1].exists(), empty.exists()) == (True, False, False)
    assert vacuum(small.root, older_than_h=0) == ["checkpoints/model"]


def test_the_media_of_a_copied_root_are_kept(small, tmp_path):
    shutil.copytree(small.root, tmp_path / "copy")
    with pytest.raises(ValueError, match="this root was copied or moved"):
        vacuum(str(tmp_path / "copy"), older_than_h=0, delete=True)
    [warning] = [finding for finding in verify(str(tmp_path / "copy")) if finding.level == "warn"]
    assert warning.num_bad == 3
    assert "this root was copied or moved" in warning.advice


def test_vacuum_lists_and_then_removes_what_no_row_names(small):
    stray = Path(small.root, "media", "clips", ".writing-x", "0.mp4")
    stray.parent.mkdir()
    orphan = Path(small.root, "tables", "clips", "part-of-a-killed-writer.parquet")
    for path in (stray, orphan):
        path.write_bytes(b"half")
    assert sorted(small.bad_findings("warn")) == [
        ("(files)", "no left-over files"),
        ("clips", "no left-over Parquet files"),
    ]
    assert all("--older-than 0" in finding.advice for finding in verify(small.root) if finding.level == "warn")
    names = ["media/clips/.writing-x/0.mp4", "tables/clips/part-of-a-killed-writer.parquet"]
    assert vacuum(small.root, older_than_h=1) == []
    assert vacuum(small.root, older_than_h=0) == names
    assert stray.exists()
    assert vacuum(small.root, older_than_h=0, delete=True) == names
    assert not stray.parent.exists()
    assert not orphan.exists()
    assert small.bad_findings("warn") == small.bad_findings() == []
    assert Path(small.root, "media", "clips", f"{small.clip_id(1)}.mp4").exists()


def test_vacuum_keeps_checkpoints_of_a_training_until_another_has_continued_it(tmp_path):
    root = str(tmp_path)
    for name in ("first", "second", "killed"):
        Path(root, "checkpoints", name, "step-00000008").mkdir(parents=True)
    lineage = Lineage("test", "train_dit", "1", "", "")
    for name, parent in (("first", ""), ("second", "first")):
        append_block(root, "models", [ok_row({}, model_id=name, kind="dit", parent_id=parent)], name, lineage)
    assert vacuum(root, older_than_h=0) == ["checkpoints/first", "checkpoints/killed"]
