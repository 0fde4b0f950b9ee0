"""Rows of a root from elsewhere name files of that root only."""

import json
import os

import pytest

from pyramid_model.video.video import VideoError, read_clip
from tasks.encoding.latents import check_unchanged
from tasks.exchange.dataset_export import export_dataset
from tasks.inspecting.verify import check_media, verify
from tasks.report import previews
from tasks.report.media import MediaBudget
from tasks.tables import storage
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.tables.root_paths import FOLDERS, MARK, inside, media_folders
from tasks.tables.rows import Lineage, ok_row

LINE = Lineage("r", "s", "1", "p" * 32, "x")
OUTSIDE = [
    "/etc/passwd",
    "file:///etc/passwd",
    "{root}/../secret.mp4",
    "{root}/media/clips/../../../secret.mp4",
    "{root}/media/./../../secret.mp4",
    "{root}-other/media/clips/a.mp4",
    "../secret.mp4",
    "secret.mp4",
    "~/secret.mp4",
    "http://127.0.0.1:9/a.mp4",
    "s3://bucket/a.mp4",
    "simplecache::file:///etc/passwd",
    "zip://a.mp4::http://127.0.0.1:9/a.zip",
    "/../../../../../../etc/passwd",
    "\x00",
    "a" * 5000,
    "{root}/media/zip://a::/etc/passwd",
    "",
]


@pytest.mark.parametrize("uri", OUTSIDE)
def test_uris_that_lead_out_of_the_root_are_marked_in_every_column(tmp_path, uri):
    root = str(tmp_path / "root")
    uri = uri.format(root=root)
    marked = f"{MARK}{uri}" if uri else ""
    assert inside(root, uri) == marked
    rows = {
        "sources": ok_row({}, source_id="a", video_id="v", uri=uri, copy=uri),
        "clips": ok_row({}, clip_id="a", video_id="v", uri=uri),
        "models": ok_row({}, model_id="a", kind="dit", uri=uri),
        "evaluations": ok_row({}, evaluation_id="a", media=[uri, f"{root}/media/evaluations/b.mp4"]),
        "generations": ok_row({}, generation_id="a", prompt="p", uri=uri),
    }
    for table, row in rows.items():
        append_block(root, table, [row], table, LINE)
    assert read_table(root, "sources")["copy"].to_pylist() == [marked]
    assert read_table(root, "sources")["uri"].to_pylist() == [uri]
    for table in ("clips", "models", "generations"):
        assert read_table(root, table)["uri"].to_pylist() == [marked]
    assert not marked or not storage.exists(marked)
    assert all(finding.check for finding in verify(root, media=True))  # goes on to its end
    (media,) = read_table(root, "evaluations")["media"].to_pylist()
    assert media == [marked, f"{root}/media/evaluations/b.mp4"]


def test_nothing_opens_a_marked_file(squares, tmp_path):
    secret = tmp_path / "secret.mp4"
    good = read_table(squares.root, "clips", ["clip_id", "uri", "video_id"]).to_pylist()
    secret.write_bytes(storage.read_bytes(good[0]["uri"]))
    size = {"height": 32, "width": 32, "fps_num": 8, "fps_den": 1, "num_frames": 9}
    row = ok_row({"attempt": 2}, clip_id=good[0]["clip_id"], video_id=good[0]["video_id"], uri=str(secret), **size)
    append_block(squares.root, "clips", [row], "hostile", LINE)
    clips = {row["clip_id"]: row for row in read_table(squares.root, "clips").to_pylist()}
    clip = clips[good[0]["clip_id"]]
    assert clip["uri"] == f"{MARK}{secret}"
    with pytest.raises(VideoError, match="is missing"):
        check_unchanged(clip["uri"], clip["size_bytes"], clip["crc32"])
    with pytest.raises(VideoError):
        read_clip(clip["uri"], height=32, width=32)
    assert MediaBudget(10**9).video(clip["uri"]) == ""
    assert previews.frames_of(clip["uri"], 1) == []
    with pytest.raises(Exception, match="does not exist"):
        export_dataset(squares.root, "webdataset", str(tmp_path / "shards"))


def test_uris_in_the_figures_of_an_evaluation_are_checked_too(tmp_path):
    root = str(tmp_path / "root")
    (tmp_path / "secret.mp4").write_bytes(b"x")
    metrics = json.dumps({"samples": [{"prompt": "p", "uri": str(tmp_path / "secret.mp4")}]})
    row = ok_row({}, evaluation_id="a", metrics=metrics, checks="[]", passed=True, media=[])
    append_block(root, "evaluations", [row], "a", LINE)
    assert f"`{MARK}{tmp_path}/secret.mp4`" in previews.verdict_page(root, "a")


@pytest.mark.parametrize("folder", ["clips", "generated", "evaluations"])
def test_a_link_in_the_media_of_a_root_is_not_followed(tmp_path, folder):
    (tmp_path / "secret").write_bytes(b"x")
    link = tmp_path / "root" / "media" / folder / f"{content_id(1)}.mp4"
    link.parent.mkdir(parents=True)
    os.symlink(tmp_path / "secret", link)
    with pytest.raises(FileNotFoundError, match="is a link"):
        storage.read_bytes(str(link))
    with pytest.raises(VideoError, match="is a link"):
        read_clip(str(link), height=32, width=32)


def test_the_user_alone_says_which_files_outside_of_the_root_its_rows_may_name(tmp_path, monkeypatch):
    root, videos = str(tmp_path / "root"), tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"x")
    uris = [f"{videos}/a.mp4", f"{videos}/../a.mp4", f"{videos}-other/a.mp4", f"{root}/media/clips/a.mp4"]
    rows = [ok_row({}, clip_id=str(number), video_id="v", uri=uri) for number, uri in enumerate(uris)]
    append_block(root, "clips", rows, "a", LINE)
    # What the root itself says allows nothing.
    append_block(root, "sources", [ok_row({}, source_id="a", video_id="v", uri=str(videos))], "a", LINE)

    def clips() -> list[str]:
        return read_table(root, "clips").sort_by("clip_id")["uri"].to_pylist()

    assert [uri.startswith(MARK) for uri in clips()] == [True, True, True, False]
    assert check_media(root, "clips", {}).advice.startswith("the rows name files outside of the root")
    budget = MediaBudget(10**6)
    assert budget.video(clips()[0]) == ""
    assert (budget.missing, budget.outside) == (1, 1)
    monkeypatch.setenv(FOLDERS, f"/elsewhere:{videos}/:s3://bucket/videos")
    assert media_folders() == ["/elsewhere", str(videos), "s3://bucket/videos"]
    assert [uri.startswith(MARK) for uri in clips()] == [False, True, True, False]
    assert inside(root, "s3://bucket/videos/a.mp4") == "s3://bucket/videos/a.mp4"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_pipe_or_a_folder_in_the_place_of_a_clip_is_a_missing_video(tmp_path, make):
    make(tmp_path / "a.mp4")
    budget = MediaBudget(10**6)
    assert budget.video(str(tmp_path / "a.mp4")) == ""
    assert budget.thumbnails({"a": str(tmp_path / "a.mp4")}) == {}
    assert (budget.missing, budget.outside) == (2, 0)
