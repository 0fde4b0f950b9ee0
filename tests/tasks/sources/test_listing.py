"""Videos of a bucket, on a real S3 server of this machine. About 10 s."""

import pytest

pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto[server], which plays S3, is not installed")

from tasks.sources.ingest import FileHasher, IngestConfig, _rows  # noqa: E402
from tasks.sources.listing import source_files  # noqa: E402
from tasks.tables import storage  # noqa: E402

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def bucket():
    """URI of a bucket with two equal videos, a list, a shard, a source.yaml and a text."""
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "any")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        storage.filesystem("s3://lists")[0].mkdir("lists")
        for name in ("in/a.mp4", "in/deep/copy.mp4"):
            storage.write_bytes(f"s3://lists/{name}", b"video" * 1000)
        storage.write_bytes("s3://lists/in/source.yaml", b"name: films\nlicense: CC0-1.0\n")
        storage.write_bytes("s3://lists/in/notes.md", b"notes")
        storage.write_bytes("s3://lists/list.csv", b"path,text\nin/a.mp4,A bear.\nin/gone.mp4,Gone.\n/etc/passwd,Us.\n")
        yield "s3://lists"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def rows_of(source: str, media: str, **settings) -> dict[str, dict]:
    """Rows of `sources` by path, as the ingest step would write them."""
    config = IngestConfig(source=source, **settings)
    listed = source_files(source, "/elsewhere")
    items = [item | {"attempt": 1} for item in _rows(listed.folder, listed.files, {})]
    return {row["path"]: row for row in FileHasher(config, media)(items).rows["sources"]}


def test_a_prefix_is_a_folder_with_its_card(bucket, tmp_path):
    rows = rows_of(f"{bucket}/in", f"{tmp_path}/media")
    assert sorted(rows) == ["a.mp4", "deep/copy.mp4"]
    assert rows["a.mp4"]["video_id"] == rows["deep/copy.mp4"]["video_id"]
    row = rows["a.mp4"]
    assert (row["uri"], row["license"], row["size_bytes"]) == (f"{bucket}/in/a.mp4", "CC0-1.0", 5000)
    assert row["mtime_ns"] > 0
    assert row["copy"] == ""
    assert not (tmp_path / "media").exists()


def test_copies_are_kept_when_asked_for(bucket, tmp_path):
    row = rows_of(f"{bucket}/in", f"{tmp_path}/media", copies="remote")["a.mp4"]
    assert row["copy"] == f"{tmp_path}/media/{row['video_id']}.mp4"
    assert storage.read_bytes(row["copy"]) == b"video" * 1000
    row = rows_of(f"{bucket}/in", "s3://lists/root/media/sources", copies="remote")["a.mp4"]
    assert storage.read_bytes(row["copy"]) == b"video" * 1000


def test_a_list_in_a_bucket_names_what_is_beside_it_and_nothing_here(bucket, tmp_path):
    rows = rows_of(f"{bucket}/list.csv", f"{tmp_path}/media")
    assert {path: (row["status"], row.get("error_type")) for path, row in rows.items()} == {
        "a.mp4": ("ok", None),
        "gone.mp4": ("failed", "missing"),
        "/etc/passwd": ("failed", "bad_entry"),
    }
    assert '"text": "A bear."' in rows["a.mp4"]["annotations"]


def test_a_shard_in_a_bucket_is_read_in_place(bucket, tmp_path):
    import io
    import tarfile

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, body in (("1.txt", b"A cat."), ("1.mp4", b"cat" * 1000)):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    storage.write_bytes(f"{bucket}/shards/s.tar", content.getvalue())
    [(path, row)] = rows_of(f"{bucket}/shards", f"{tmp_path}/media").items()
    assert (path, storage.read_bytes(row["copy"])) == ("s.tar/1.mp4", b"cat" * 1000)
