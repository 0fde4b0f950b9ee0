"""Every file of a source becomes a row with the content id of its bytes. About 5 s on a warm Ray."""

import os
import shutil

import pytest

from tasks.ingest import FileHasher, IngestConfig, hash_file, ingest
from tasks.listing import source_files
from tasks.source_card import read_card
from tasks.step import RayConfig, Run
from tasks.tables import read_table


def run_in(tmp_path, **kwargs) -> Run:
    return Run(root=str(tmp_path / "root"), ray=RayConfig(num_cpus=2), **kwargs)


def names(source, root="/elsewhere") -> list[str]:
    return [file.path for file in source_files(str(source), root)[1]]


def test_a_folder_is_walked_and_only_listed_suffixes_and_hidden_files_left_out(tmp_path):
    for name in ("b.mp4", "a.mkv", "deep/er/c.xyz", "noext", "d.txt", "e.YAML", ".hidden.mp4", ".git/x.mp4", "f.srt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert names(tmp_path) == ["a.mkv", "b.mp4", "deep/er/c.xyz", "noext"]


def test_our_own_output_is_no_source(tmp_path):
    for name in ("a.mp4", "out/media/clips/b.mp4", "out/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path, root=str(tmp_path / "out")) == ["a.mp4", "out/c.mp4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "# two files\na.mp4\n\n{folder}/b.mp4\n"),
        ("list.csv", "title,path\nfirst,a.mp4\nsecond,{folder}/b.mp4\n"),
        ("list.jsonl", '{{"path": "a.mp4"}}\n{{"uri": "{folder}/b.mp4"}}\n'),
    ],
)
def test_a_list_names_files_absolute_or_beside_it(tmp_path, name, text):
    for video in ("a.mp4", "b.mp4"):
        (tmp_path / video).write_bytes(b"x")
    (tmp_path / name).write_text(text.format(folder=tmp_path))
    found = source_files(str(tmp_path / name), "/elsewhere")[1]
    assert [(file.uri, file.size_bytes) for file in found] == [(f"{tmp_path}/a.mp4", 1), (f"{tmp_path}/b.mp4", 1)]


def test_one_file_is_a_source(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert names(tmp_path / "a.mp4") == ["a.mp4"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no source is given: name a folder of videos with --source or in ingest.source"),
        ("{}/nowhere", "nowhere' does not exist: give a folder of videos, a list, or a file"),
        ("{}/empty", "holds no video: no file in it or below is a candidate"),
        ("{}/empty.txt", "names no file: write one path or URI a line"),
        ("{}/wrong.csv", "has no column 'uri' or 'path': its first line is \\['name'\\]"),
        ("{}/wrong.jsonl", "wrong.jsonl, line 1: expected"),
    ],
)
def test_a_source_that_cannot_be_used_is_explained(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("only notes")
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    (tmp_path / "wrong.csv").write_text("name\na.mp4\n")
    (tmp_path / "wrong.jsonl").write_text('["a.mp4"]\n')
    with pytest.raises(ValueError, match=message):
        ingest(run_in(tmp_path), IngestConfig(source=source.format(tmp_path)))
    assert read_table(str(tmp_path / "root"), "sources").num_rows == 0


@pytest.mark.ray
def test_ids_follow_the_bytes_and_unchanged_files_are_not_read_again(ray_local, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"one" * 1000)
    shutil.copy(folder / "a.mp4", folder / "copy of a.mp4")
    (folder / "b.mp4").write_bytes(b"two")
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere")
    run, config = run_in(tmp_path), IngestConfig(source=str(folder))
    first = ingest(run, config)
    assert (first.num_in, first.num_ok, first.num_failed, first.errors) == (4, 3, 1, {"missing": 1})
    rows = {row["path"]: row for row in read_table(run.root, "sources").to_pylist()}
    assert rows["a.mp4"]["video_id"] == rows["copy of a.mp4"]["video_id"] == hash_file(f"{folder}/a.mp4")[0]
    assert rows["b.mp4"]["video_id"] != rows["a.mp4"]["video_id"]
    assert rows["gone.mp4"]["status"] == "failed"

    assert ingest(run, config).num_new == 0
    (folder / "b.mp4").write_bytes(b"three")  # replaced in place
    again = ingest(run, config)
    assert (again.num_done, again.num_ok) == (3, 1)
    assert read_table(run.root, "sources").num_rows == 5


@pytest.mark.ray
def test_the_card_gives_name_licences_and_checksums(ray_local, tmp_path):
    folder = tmp_path / "in" / "sample"
    folder.mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (folder / name).write_bytes(name.encode())
    sha256 = hash_file(f"{folder}/b.mp4", want_sha256=True)[1]
    (folder / "source.yaml").write_text(
        "name: films\nlicense: CC-BY-4.0\nfiles:\n"
        f"  - {{path: b.mp4, license: CC0-1.0, sha256: {sha256}}}\n  - {{path: c.mp4, sha256: {'ab' * 32}}}\n"
    )
    run = run_in(tmp_path)
    assert ingest(run, IngestConfig(source=str(tmp_path / "in"))).errors == {"checksum": 1}
    rows = {row["path"]: row for row in read_table(run.root, "sources").to_pylist()}
    assert {name: (row["source"], row["license"], row["status"]) for name, row in rows.items()} == {
        "a.mp4": ("films", "CC-BY-4.0", "ok"),
        "b.mp4": ("films", "CC0-1.0", "ok"),
        "c.mp4": ("films", "CC-BY-4.0", "failed"),
    }
    assert rows["a.mp4"]["card"] == f"{folder}/source.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "source.yaml is not YAML"),
        ("- a\n- b", "must be a mapping with the keys name, license"),
        ("name: x\nlicence: MIT", "no key 'licence'. Did you mean 'license'\\? Keys of source.yaml: name, license, "),
        ("files: [{path: a.mp4, sha: ab}]", "no key 'files.0.sha'.*Keys of files: path, sha256, license"),
        ("splits: [{file: a.mp4, split: val, start: 2}]", "'splits.0.start'. Did you mean 'start_s'\\?"),
        ("files: [{title: A}]", "wrong: files.0.path is missing"),
        ("splits: [{file: a.mp4, split: valid}]", "splits.0.split = 'valid'.*'train', 'val' or 'test'"),
        ("splits: [{file: a.mp4, split: val, start_s: 5, end_s: 2}]", "start_s 5 is not before end_s 2"),
    ],
)
def test_a_wrong_card_is_explained(tmp_path, text, message):
    (tmp_path / "source.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_card(str(tmp_path / "source.yaml"))


def test_a_pin_on_a_file_that_is_not_there_is_an_error_not_a_leak(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"x")
    (tmp_path / "in" / "source.yaml").write_text("splits: [{file: A.mp4, split: val}]")
    with pytest.raises(ValueError, match=r"source\.yaml pins the splits of files that are not there: A\.mp4"):
        ingest(run_in(tmp_path), IngestConfig(source=str(tmp_path / "in")))


def test_a_file_that_grows_while_it_is_read_is_no_video_yet(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    item = {"source_id": "s", "uri": f"{tmp_path}/a.mp4", "size_bytes": 3, "sha256": "", "attempt": 1}
    [row] = FileHasher()([item])["sources"]
    assert (row["status"], row["error_type"]) == ("failed", "changed")
