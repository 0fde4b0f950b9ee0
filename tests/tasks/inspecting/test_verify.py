"""`manifest verify` finds each kind of damage."""

import os
import zlib
from pathlib import Path

import pytest
from deltalake import write_deltalake

from tasks.inspecting.verify import blob_bytes, check_media, verify
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table, table_uri
from tasks.tables.rows import Lineage, ok_row


def test_a_whole_root_passes_every_check(small):
    findings = list(verify(small.root))
    assert {finding.level for finding in findings} == {"ok"}
    assert len(findings) > 30


def test_verify_finds_a_changed_byte(small):
    small.append("latents", [small.latent(3, latent=bytes(16))])
    assert small.bad_findings() == [("latents", "checksums and lengths of binary values")]
    assert not [finding for finding in verify(small.root, blobs=False) if finding.level == "fail"]


def test_verify_finds_a_value_that_does_not_fill_its_shape(small):
    small.append("latents", [small.latent(3, shape=[4, 4, 4, 4])])
    [finding] = [finding for finding in verify(small.root) if finding.level == "fail"]
    assert "16 bytes, expected 512 (bfloat16)" in finding.example
    assert (blob_bytes([2, 3], "float32"), blob_bytes([2, 3], "bfloat16")) == (24, 12)


def test_verify_finds_ids_that_are_none(small):
    small.append("captions", [ok_row({}, caption_id="7", clip_id=small.clip_id(1))])
    assert small.bad_findings() == [("captions", "ids are 32 hex digits")]


def test_verify_warns_of_rows_that_come_twice_and_fails_when_other_code_made_one(small):
    rows = read_table(small.root, "captions", newest=False)
    write_deltalake(table_uri(small.root, "captions"), rows, mode="append")
    assert small.bad_findings() == []
    [finding] = [finding for finding in verify(small.root, "captions") if finding.level == "warn"]
    assert (finding.check, finding.num_bad) == ("one row per id and attempt", rows.num_rows)
    other = rows.set_column(rows.schema.get_field_index("code_version"), "code_version", [["other"] * rows.num_rows])
    write_deltalake(table_uri(small.root, "captions"), other, mode="append")
    assert small.bad_findings() == [("captions", "one row per id and attempt")]


def test_verify_finds_rows_without_a_reason_and_rows_that_refer_to_nothing(small):
    no_clip = small.score(7, "motion", 1.0) | {"status": "failed", "error_type": "gone", "error": "it has no clip"}
    small.append(
        "scores", [small.score(8, "motion", 1.0), small.score(9, "motion", 1.0) | {"status": "failed"}, no_clip]
    )
    (lost,) = [finding for finding in verify(small.root, "scores") if finding.check == "clip_id is in clips"]
    assert lost.num_bad == 1  # a row that failed may well have no clip
    assert small.bad_findings() == [("scores", "every row says ok, or why not"), ("scores", "clip_id is in clips")]


def test_verify_finds_missing_and_changed_media_files(small):
    os.unlink(Path(small.root, "media", "clips", f"{small.clip_id(1)}.mp4"))
    Path(small.root, "media", "clips", f"{small.clip_id(2)}.mp4").write_bytes(b"cut")
    [finding] = [finding for finding in verify(small.root) if finding.level == "fail"]
    assert (finding.check, finding.num_bad) == ("media files are there", 2)


def test_verify_counts_in_and_out(small):
    small.append("sources", [ok_row({}, source_id=content_id("b"), video_id=content_id("not yet cut"))])
    small.append(
        "videos", [ok_row({"attempt": 2}, video_id=small.VIDEO, clip_ids=[small.clip_id(1), small.clip_id(7)])]
    )
    assert small.bad_findings("warn") == [("sources", "every file became a video row")]
    assert small.bad_findings() == [("videos", "every clip of a video has its row")]


def test_verify_reports_a_table_of_another_version_and_goes_on(small):
    import pyarrow as pa

    write_deltalake(table_uri(small.root, "duplicates"), pa.table({"clip_id": ["a"]}))
    assert ("duplicates", "columns and files") in small.bad_findings()


def test_verify_reports_files_that_a_table_has_lost_and_checks_the_others(small):
    for path in Path(small.root, "tables", "clips").glob("*.parquet"):
        path.unlink()
    findings = list(verify(small.root))
    [lost] = [finding for finding in findings if finding.level == "fail"]
    assert (lost.table, lost.check, lost.num_bad) == ("clips", "columns and files", 1)
    assert any(finding.table == "scores" and finding.check == "ids are 32 hex digits" for finding in findings)
    assert [finding.table for finding in verify(small.root, "scores")].count("clips") == 0


def test_verify_compares_the_checksums_of_media_on_request(small):
    path = Path(small.root, "media", "clips", f"{small.clip_id(2)}.mp4")
    small.append("clips", [small.clip(2, attempt=2, crc32=zlib.crc32(path.read_bytes()))])
    assert not [finding for finding in verify(small.root, media=True) if finding.level == "fail"]
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert small.bad_findings() == []
    [finding] = [finding for finding in verify(small.root, media=True) if finding.level == "fail"]
    assert (finding.table, finding.check) == ("clips", "media files are there and unchanged")
    assert f"{path} was changed" in finding.example


@pytest.mark.parametrize("old_row", [False, True])
def test_each_sample_of_an_evaluation_is_compared_with_its_own_checksum(tmp_path, old_row):
    root = str(tmp_path / "root")
    files = [tmp_path / "root" / "media" / "evaluations" / "a" / f"sample-{number}.mp4" for number in range(2)]
    files[0].parent.mkdir(parents=True)
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 100)
    sums = {} if old_row else {"crc32": [zlib.crc32(file.read_bytes()) for file in files]}
    row = ok_row({}, evaluation_id=content_id(1), media=[str(file) for file in files], **sums)
    append_block(root, "evaluations", [row], "a", Lineage("r", "s", "1", "p" * 32, "x"))
    sizes = {str(file): 100 for file in files}
    assert check_media(root, "evaluations", sizes, every_byte=True).level == "ok"
    files[1].write_bytes(b"\1" * 50 + b"\0" + b"\1" * 49)
    assert check_media(root, "evaluations", sizes).level == "ok"
    finding = check_media(root, "evaluations", sizes, every_byte=True)
    assert finding.level == ("ok" if old_row else "fail")
    assert old_row or f"{files[1]} was changed" in finding.example
