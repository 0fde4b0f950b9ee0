"""Checks of files that rows name in lists. Checks of other tables: tests/tasks/tables/test_manifest.py."""

import zlib

import pytest

from tasks.inspecting.verify import check_media
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, ok_row


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
