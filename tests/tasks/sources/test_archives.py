"""Videos of WebDataset shards become sources with their captions, and nothing in a shard can do harm. About 5 s."""

import gzip
import io
import json
import tarfile

import pytest

from tasks.running.run import RayConfig, Run
from tasks.sources.ingest import IngestConfig, ingest
from tasks.sources.listing import source_files
from tasks.tables import storage
from tasks.tables.delta import read_table


def shard(path, files: dict[str, bytes], **kinds: bytes) -> str:
    """A tar file of these members; `kinds` gives some of them another type, by their key."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type = kinds.get(name.partition(".")[0], tarfile.REGTYPE)
            member.linkname = "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def found_in(source: str) -> dict[str, tuple[str, list[str]]]:
    """(error_type, texts) by path."""
    files = source_files(source, "/elsewhere").files
    return {file.path: (file.error_type, [annotation["text"] for annotation in file.annotations]) for file in files}


def test_the_videos_of_a_shard_come_with_the_captions_beside_them(tmp_path):
    about = json.dumps({"caption": "A bear.", "motion": 3.5, "start_s": 9}).encode()
    files = {"a/1.mp4": b"one", "a/1.json": about, "2.txt": b"A cat.\n", "2.cam.mp4": b"two", "2.npy": b"x"}
    path = shard(tmp_path / "s.tar", files | {"3.webm": b"three", "3.json": b"[broken"})
    assert found_in(path) == {
        "s.tar/a/1.mp4": ("", ["A bear."]),
        "s.tar/2.cam.mp4": ("", ["A cat."]),
        "s.tar/3.webm": ("", []),
    }
    said = source_files(path, "/elsewhere").files[0].annotations[0]
    assert said == {"start_s": None, "end_s": None, "text": "A bear.", "motion": 3.5}


def test_a_shard_is_told_by_its_content_and_may_lie_in_folders_and_lists(tmp_path):
    shard(tmp_path / "s.tar", {"1.mp4": b"one"})
    (tmp_path / "copy.shard").write_bytes((tmp_path / "s.tar").read_bytes())
    (tmp_path / "list.txt").write_text("s.tar\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.mp4").write_bytes(b"x")
    shard(tmp_path / "in" / "t.tar", {"2.mp4": b"two", "2.c": b"no video"})
    assert list(found_in(str(tmp_path / "copy.shard"))) == ["copy.shard/1.mp4"]
    assert list(found_in(str(tmp_path / "list.txt"))) == ["s.tar/1.mp4"]
    assert list(found_in(str(tmp_path / "in"))) == ["b.mp4", "t.tar/2.mp4"]
    with pytest.raises(ValueError, match="holds no video: no member has the suffix of a video"):
        source_files(shard(tmp_path / "texts.tar", {"a.txt": b"x"}), "/elsewhere")


def test_links_and_odd_names_are_rows_and_a_cut_shard_gives_what_is_whole(tmp_path):
    files = {"link.mp4": b"", "hard.mp4": b"", "a::b.mp4": b"x", "V\udcf6gel.mp4": b"x", "big.txt": bytes(2**20 + 1)}
    path = shard(tmp_path / "s.tar", files | {"big.mp4": b"x"}, link=tarfile.SYMTYPE, hard=tarfile.LNKTYPE)
    assert [(kind, texts) for kind, texts in found_in(path).values()] == [
        *(("not_a_file", []) for _ in range(2)),
        *(("bad_name", []) for _ in range(2)),
        ("", []),
    ]
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    assert [kind for kind, _ in found_in(str(tmp_path / "cut.tar")).values()][-1] == "bad_archive"
    for name in ("packed.tar", "packed.tar.gz", "packed.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(whole))
        assert [kind for kind, _ in found_in(str(tmp_path / name)).values()] == ["bad_archive"]


@pytest.mark.ray
def test_members_are_read_in_place_and_never_written_under_their_own_names(ray_local, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    files = {"1.mp4": b"one" * 1000, "1.txt": b"A bear.", "../../../out.mp4": b"two", "/abs.mp4": b"three"}
    shard(folder / "s.tar", files)
    (folder / "source.yaml").write_text("name: bears\nfiles: [{path: s.tar/1.mp4, license: CC0-1.0}]\n")
    run = Run(root=str(tmp_path / "deep" / "er" / "root"), ray=RayConfig(num_cpus=2))
    config = IngestConfig(source=str(folder))
    first = ingest(run, config)
    assert (first.num_ok, first.note) == (3, "read as WebDataset shards")
    rows = {row["path"]: row for row in read_table(run.root, "sources").to_pylist()}
    contents = {path.removeprefix("s.tar/"): storage.read_bytes(row["copy"]) for path, row in rows.items()}
    assert contents == {name: content for name, content in files.items() if name.endswith(".mp4")}
    assert all(row["copy"] == run.media("sources", row["video_id"] + ".mp4") for row in rows.values())
    assert rows["s.tar/1.mp4"]["license"] == "CC0-1.0"
    assert rows["s.tar/1.mp4"]["uri"] == f"tar://1.mp4::{folder}/s.tar"
    assert storage.read_bytes(rows["s.tar/1.mp4"]["uri"]) == files["1.mp4"]
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.mp4")}
    assert written == {"deep"}
    assert ingest(run, config).num_new == 0


def hostile_tars() -> dict[str, bytes]:
    """Tar files of a few hundred bytes: headers that claim terabytes, negative sizes, and sparse files."""

    def head(name: str, kind: bytes, size: int, body: bytes = b"") -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512) + bytes(1024)

    negative = bytearray(head("a.mp4", tarfile.REGTYPE, 5, b"hello"))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(negative[:512]))[0]
    records = [b"99999999999999 path=a.mp4\n", b"20 size=-9999999999\n", b"30 GNU.sparse.numblocks=9999999\n"]
    records += [b"29 size=99999999999999999999\n", b"13 size=-512\n"]
    described = [head("pax", b"x", len(r), r)[:1024] + head("a.mp4", b"0", 1, b"x") for r in records]
    return {
        "longname": head("././@LongLink", b"L", 1 << 44),
        "longlink": head("././@LongLink", b"K", 1 << 44),
        "pax": head("pax", b"x", 1 << 44),
        "global pax": head("pax", b"g", 1 << 44),
        "negative": bytes(negative),
        **{f"record {number}": tar for number, tar in enumerate(described)},
        "video": head("a.mp4", tarfile.REGTYPE, 1 << 60),
        "texts": head("a.json", tarfile.REGTYPE, 1 << 40),
        "noise": bytes(range(256)) * 8,
    }


@pytest.mark.parametrize("name", list(hostile_tars()))
def test_a_hostile_archive_is_a_row_and_the_other_files_go_on(tmp_path, name):
    (tmp_path / "bad.tar").write_bytes(hostile_tars()[name])
    (tmp_path / "good.mp4").write_bytes(b"x")
    files = source_files(str(tmp_path), str(tmp_path / "root")).files
    assert [file.path for file in files if not file.error_type and not file.archive] == ["good.mp4"]
    assert all(len(file.error) < 1000 for file in files)
    assert all(0 <= file.size_bytes <= (tmp_path / "bad.tar").stat().st_size for file in files)


def test_the_attack_of_1536_bytes_is_told_with_its_name(tmp_path):
    (tmp_path / "a.tar").write_bytes(hostile_tars()["longname"])
    (tmp_path / "b.mp4").write_bytes(b"x")
    bad = next(file for file in source_files(str(tmp_path), str(tmp_path / "root")).files if file.error_type)
    assert (bad.path, bad.error_type) == ("a.tar", "bad_archive")
    assert "a header of 17592186044416 bytes" in bad.error
