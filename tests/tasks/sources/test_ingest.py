"""Every file of a source becomes a row with the content id of its bytes. About 5 s on a warm Ray."""

import hashlib
import io
import json
import os
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem, register_implementation

from tasks.running.run import RayConfig, Run
from tasks.sources.ingest import FileHasher, IngestConfig, _rows, hash_file, ingest
from tasks.sources.listing import source_files
from tasks.sources.trees import OWN
from tasks.tables.appending import _to_arrow
from tasks.tables.delta import read_table
from tasks.tables.rows import Lineage


def run_in(tmp_path, **kwargs) -> Run:
    return Run(root=str(tmp_path / "root"), ray=RayConfig(num_cpus=2), **kwargs)


def names(source, root="/elsewhere") -> list[str]:
    return [file.path for file in source_files(str(source), root)[1]]


def test_a_folder_is_walked_and_only_listed_suffixes_and_hidden_files_left_out(tmp_path):
    for name in ("b.mp4", "a.mkv", "deep/er/c.xyz", "noext", "d.txt", "e.YAML", ".hidden.mp4", ".git/x.mp4", "f.srt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["a.mkv", "b.mp4", "deep/er/c.xyz", "noext"]


def test_whatever_a_root_contains_is_no_source(tmp_path):
    """The tree of a root stands in docs/tables.md; a part of it that is new must be added to OWN."""
    page = (Path(__file__).parents[3] / "docs" / "tables.md").read_text()
    tree = page.partition("<root>/\n")[2].partition("```")[0].splitlines()
    parts = [line.split()[0].partition("/")[0] for line in tree]
    assert sorted(parts) == sorted(OWN)
    root = tmp_path / "out"
    for part in parts:
        (root / part).parent.mkdir(exist_ok=True)
        if "." in part:
            (root / part).write_bytes(b"x")
        else:
            (root / part).mkdir()
            (root / part / "b.mp4").write_bytes(b"x")
    for name in ("a.mp4", "out/c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "clips").symlink_to(root / "media")
    (tmp_path / "d.mp4").symlink_to(root / "media" / "b.mp4")
    assert [file.path for file in source_files(str(tmp_path), str(root), ())[1]] == ["a.mp4", "out/c.mp4"]
    assert [file.path for file in source_files(str(root), str(root), ())[1]] == ["c.mp4"]


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
    files = source_files(str(tmp_path / name), "/elsewhere")[1]
    assert [(file.uri, file.size_bytes) for file in files] == [(f"{tmp_path}/a.mp4", 1), (f"{tmp_path}/b.mp4", 1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "foo://x/b.mp4\nnul\0.mp4\n\n{folder}\npipe.mp4\na::b.mp4\na.mp4\n"),
        (
            "list.csv",
            'path,title\nfoo://x/b.mp4,B\nnul\0.mp4,N\n"",empty\n{folder},F\npipe.mp4,P\na::b.mp4,C\na.mp4,A\n',
        ),
        (
            "list.jsonl",
            '{{"uri": "foo://x/b.mp4"}}\n{{"uri": "nul\\u0000.mp4"}}\n{{"uri": 3}}\n["a.mp4"]\nno json\n'
            '{{"path": "half\\ud800.mp4"}}\n{{"path": "{folder}"}}\n{{"path": "pipe.mp4"}}\n{{"path": "a::b.mp4"}}\n'
            '{{"path": "a.mp4"}}\n',
        ),
    ],
)
def test_a_bad_entry_of_a_list_gets_its_reason_and_the_others_go_on(tmp_path, name, text):
    (tmp_path / "a.mp4").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / name).write_text(text.format(folder=tmp_path))
    kinds = reasons(tmp_path / name)
    entries = {"list.txt": [], "list.csv": ["bad_entry"], "list.jsonl": ["bad_entry"] * 3 + ["bad_name"]}[name]
    expected = ["bad_uri", "bad_name", *entries, "not_a_file", "not_a_file", "bad_name", ""]
    assert [kind for _, kind in kinds] == expected
    assert kinds[0][0] == "b.mp4"
    assert kinds[-1] == ("a.mp4", "")


def reasons(source, root="/elsewhere") -> list[tuple[str, str]]:
    """(path, error_type) of the rows that ingest would write for a source, those of readable files empty."""
    listed = source_files(str(source), root)
    items = list(_rows(listed.folder, listed.files, {}))
    items = [json.loads(json.dumps(item)) | {"attempt": 1} for item in items]
    rows = FileHasher(IngestConfig(), "/proc/no-copies")(items).rows["sources"]
    _to_arrow("sources", rows, Lineage("test", "ingest", "1", "", ""))  # any of them can be written
    return [(row["path"], row.get("error_type", "")) for row in rows]


def test_a_line_that_csv_cannot_read_fails_alone(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "list.csv").write_text(f"title,path\n{'x' * 200_000},b.mp4\nshort\nA,a.mp4\n")
    assert reasons(tmp_path / "list.csv") == [("line 2", "bad_entry"), ("line 3", "bad_entry"), ("a.mp4", "")]


def test_what_is_no_url_fails_alone(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("http://[::1/b.mp4\na.mp4\n")
    assert reasons(tmp_path / "list.txt") == [("b.mp4", "bad_uri"), ("a.mp4", "")]


@pytest.mark.parametrize("failure", [ImportError("Install s3fs"), RuntimeError("no connection")])
def test_a_file_system_that_cannot_be_used_fails_its_own_entries_only(tmp_path, failure):
    class Broken(AbstractFileSystem):
        protocol = "broken"

        def __init__(self, **_):
            super().__init__()
            raise failure

    register_implementation("broken", Broken, clobber=True)
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("broken://b/b.mp4\na.mp4\n")
    kind = "bad_uri" if isinstance(failure, ImportError) else "unreadable"
    assert reasons(tmp_path / "list.txt") == [("b.mp4", kind), ("a.mp4", "")]


def test_a_file_system_that_tells_no_time_of_change_still_gives_videos(tmp_path):
    class Timeless(AbstractFileSystem):
        protocol = "timeless"  # like HTTP

        def info(self, path, **_):
            if path.endswith("source.yaml"):
                raise FileNotFoundError(path)
            return {"name": path, "size": 5, "type": "file"}

        def open(self, *_, **__):
            return io.BytesIO(b"video")

    register_implementation("timeless", Timeless, clobber=True)
    (tmp_path / "list.txt").write_text("timeless://b/a.mp4\n")
    assert reasons(tmp_path / "list.txt") == [("a.mp4", "")]


def test_a_file_is_not_used_while_nobody_can_tell_what_its_card_says(tmp_path):
    class NoAnswer(AbstractFileSystem):
        protocol = "noanswer"

        def info(self, path, **_):
            if path.endswith("source.yaml"):
                raise RuntimeError("no connection")
            return {"name": path, "size": 1, "type": "file"}

        def exists(self, path, **_):
            return bool(self.info(path))

        def modified(self, path):
            return datetime(2026, 1, 1, tzinfo=UTC)

        def open(self, *_, **__):
            return io.BytesIO(b"x")

    register_implementation("noanswer", NoAnswer, clobber=True)
    (tmp_path / "list.txt").write_text("noanswer://b/held_out.mp4\n")
    listed = source_files(str(tmp_path / "list.txt"), "/elsewhere")
    [item] = _rows(listed.folder, listed.files, {})
    assert (item["path"], item["error_type"]) == ("held_out.mp4", "unreadable")
    assert item["error"].startswith("whether noanswer://b/source.yaml exists cannot be determined: RuntimeError")
    assert item["size_bytes"] == hash_file(item["uri"])[1]  # the file itself could be read


def test_a_file_has_one_id_however_a_list_spells_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "far" / "videos").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far" / "videos")
    (tmp_path / "far" / "a.mp4").write_bytes(b"x")
    spellings = ("~/far/a.mp4", "../far/a.mp4", "../far/./a.mp4", "link/../a.mp4", f"{tmp_path}//far/a.mp4")
    (tmp_path / "in" / "list.txt").write_text("\n".join([*spellings, f"file://{tmp_path}/far/a.mp4"]), "utf-8-sig")
    files = source_files(str(tmp_path / "in" / "list.txt"), "/elsewhere")[1]
    assert {(file.uri, file.path) for file in files} == {(f"{tmp_path}/far/a.mp4", "a.mp4")}
    assert len(files) == 6


def test_a_name_that_is_not_utf8_is_a_row_with_the_name_escaped(tmp_path):
    (tmp_path / "b\udcff").mkdir()
    for name in ("a.mp4", "V\udcf6gel.mp4", "b\udcff/c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    expected = [("V\\xf6gel.mp4", "bad_name"), ("a.mp4", ""), ("b\\xff/c.mp4", "bad_name")]
    assert reasons(tmp_path) == expected
    assert reasons(tmp_path / "b\udcff") == [("c.mp4", "bad_name")]
    assert reasons(tmp_path / "V\udcf6gel.mp4") == [("V\\xf6gel.mp4", "bad_name")]


def test_links_to_folders_are_followed_each_folder_once(tmp_path):
    folder = tmp_path / "in"
    for name in ("in/b/x.mp4", "elsewhere/y.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (folder / "a").symlink_to(folder / "b")  # comes first, but the folder keeps its own name
    (folder / "b" / "up").symlink_to(folder)
    (folder / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    assert reasons(folder) == [("b/x.mp4", ""), ("far/y.mp4", ""), ("self", "unreadable")]


def test_a_folder_that_may_not_be_opened_is_a_row_unless_it_is_our_own(tmp_path, monkeypatch):
    for name in ("a.mp4", "locked/b.mp4", "tables/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    scandir = os.scandir

    def refusing(path):
        if os.path.basename(path) in ("locked", "tables"):  # the tests may run as root, whom nothing is refused
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert reasons(tmp_path, str(tmp_path)) == [("a.mp4", ""), ("locked", "unreadable")]


def test_pipes_and_sockets_are_rows(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.mp4"))
        assert reasons(tmp_path) == [("pipe.mp4", "not_a_file"), ("socket.mp4", "not_a_file")]
    assert reasons(tmp_path / "pipe.mp4") == [("pipe.mp4", "not_a_file")]


def test_one_file_is_a_source(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert names(tmp_path / "a.mp4") == ["a.mp4"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no source is given: name a folder of videos with --source or in ingest.source"),
        ("{}/nowhere", "nowhere' does not exist: give a folder of videos, a list, or a file"),
        ("{}/empty", "holds no video: no file in it or in its subfolders can be one"),
        ("{}/empty.txt", "names no file: write one path or URI per line"),
        ("{}/wrong.csv", "has no column 'uri' or 'path', nor .*: its first line is \\['name'\\]"),
        ("{}/wrong.jsonl", "has no column 'uri' or 'path', nor .*: its first line is \\['picture'\\]"),
        ("{}/utf16.txt", r"list .*utf16.txt is not UTF-8 \(invalid start byte at byte 0\): save it as UTF-8"),
        ("{}/latin1.csv", r"list .*latin1.csv is not UTF-8 .*: save it as UTF-8"),
        ("{}/folder.txt/list.jsonl", r"list.jsonl' does not exist"),
        ("foo://videos", "source 'foo://videos' cannot be reached: ValueError: Protocol not known: foo"),
    ],
)
def test_a_source_that_cannot_be_used_is_explained(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("only notes")
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    (tmp_path / "wrong.csv").write_text("name\na.mp4\n")
    (tmp_path / "wrong.jsonl").write_text('{"picture": "a.jpg"}\n{"picture": "b.jpg"}\n')
    (tmp_path / "utf16.txt").write_text("a.mp4\n", "utf-16")
    (tmp_path / "latin1.csv").write_text("path\nVögel.mp4\n", "latin-1")
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
    (folder / "V\udcf6gel.mp4").write_bytes(b"x")
    os.mkfifo(folder / "pipe.mp4")
    run, config = run_in(tmp_path), IngestConfig(source=str(folder))
    first = ingest(run, config)
    assert (first.num_in, first.num_ok, first.num_failed) == (6, 3, 3)
    assert first.errors == {"missing": 1, "bad_name": 1, "not_a_file": 1}
    rows = {row["path"]: row for row in read_table(run.root, "sources").to_pylist()}
    assert rows["a.mp4"]["video_id"] == rows["copy of a.mp4"]["video_id"] == hash_file(f"{folder}/a.mp4")[0]
    assert rows["b.mp4"]["video_id"] != rows["a.mp4"]["video_id"]
    assert rows["gone.mp4"]["status"] == "failed"

    assert ingest(run, config).num_new == 0
    (folder / "b.mp4").write_bytes(b"three")  # replaced in place
    again = ingest(run, config)
    assert (again.num_done, again.num_ok) == (5, 1)
    assert read_table(run.root, "sources").num_rows == 7


@pytest.mark.ray
def test_the_card_gives_name_licences_and_checksums(ray_local, tmp_path):
    folder = tmp_path / "in" / "sample"
    folder.mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (folder / name).write_bytes(name.encode())
    sha256 = hashlib.sha256(b"b.mp4").hexdigest()
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


def test_a_pin_on_a_file_that_is_not_there_is_an_error_not_a_leak(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"x")
    (tmp_path / "in" / "source.yaml").write_text("splits: [{file: A.mp4, split: val}]")
    with pytest.raises(ValueError, match=r"source\.yaml pins the splits of files that do not exist: A\.mp4"):
        ingest(run_in(tmp_path), IngestConfig(source=str(tmp_path / "in")))


def test_a_file_that_grows_while_it_is_read_is_no_video_yet(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    item = {
        "source_id": "s",
        "uri": f"{tmp_path}/a.mp4",
        "size_bytes": 3,
        "sha256": "",
        "md5": "",
        "archive": "",
        "attempt": 1,
    }
    [row] = FileHasher(IngestConfig(), str(tmp_path / "copies"))([item]).rows["sources"]
    assert (row["status"], row["error_type"]) == ("failed", "changed")


def test_pictures_count_where_they_are_asked_for(tmp_path):
    from tasks.sources.listing import source_files
    from tasks.sources.trees import IMAGES, NON_MEDIA

    for name in ("a.mp4", "b.JPG", "c.svg"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.path for file in source_files(str(tmp_path), "/nowhere").files] == ["a.mp4"]
    left_out = tuple(suffix for suffix in NON_MEDIA if suffix not in IMAGES)
    assert [file.path for file in source_files(str(tmp_path), "/nowhere", left_out).files] == ["a.mp4", "b.JPG"]
