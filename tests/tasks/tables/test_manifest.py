"""Manifest: filters mean what they say, the joined view loses no clip, verify finds each kind of damage. About 10 s."""

import json
import os
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from tasks.inspecting.export import export_rows, text_lines, write_export
from tasks.inspecting.leftovers import vacuum
from tasks.inspecting.table_diff import diff, score_shifts, selection_diff
from tasks.inspecting.table_stats import histograms, labels, status_counts
from tasks.inspecting.verify import blob_bytes, verify
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.delta import DamagedTableError, TableError, read_table, table_uri, table_version
from tasks.tables.manifest import CLIPS_WITH_SCORES, clips_with_scores, locate, overview, parse_filter, select_rows
from tasks.tables.rows import Lineage, bad_row, ok_row

LINEAGE = Lineage("run", "step", "1", "recipe", "code")
VIDEO = content_id("video")


def clip_id(number: int) -> str:
    return content_id("clip", number)


def append(root: str, table: str, rows: list[dict], lineage: Lineage = LINEAGE) -> None:
    append_block(root, table, rows, content_id(table, len(rows), repr(rows), lineage.params_hash), lineage)


def clip(root: str, number: int, **columns) -> dict:
    path = Path(root, "media", "clips", f"{clip_id(number)}.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"clip" * number)
    own = {"video_id": VIDEO, "uri": str(path), "size_bytes": 4 * number, "num_frames": 10 * number}
    return ok_row({}, clip_id=clip_id(number), **own) | columns


def score(number: int, scorer: str, value: float) -> dict:
    return ok_row({}, score_id=content_id(number, scorer), clip_id=clip_id(number), scorer=scorer, value=value)


def selection(number: int, reasons: list[str]) -> dict:
    own = {"keep": not reasons, "drop_reasons": reasons, "split": "train"}
    return ok_row({}, selection_id=content_id("selection", number), clip_id=clip_id(number), **own)


def latent(number: int, **columns) -> dict:
    blob = bytes([number]) * 16
    own = {"shape": [1, 2, 2, 2], "dtype": "bfloat16", "latent": blob, "crc32": crc32(blob)}
    return ok_row({}, latent_id=content_id("latent", number), clip_id=clip_id(number), **own) | columns


@pytest.fixture
def root(tmp_path) -> str:
    """A whole root: one video, three clips, their scores, selections, captions and latents."""
    root = str(tmp_path / "root")
    append(root, "sources", [ok_row({}, source_id=content_id("source"), video_id=VIDEO, uri="/films/a.mp4")])
    append(root, "videos", [ok_row({}, video_id=VIDEO, clip_ids=[clip_id(n) for n in (1, 2, 3)])])
    append(root, "clips", [clip(root, number) for number in (1, 2, 3)])
    values = {"motion": (0.5, 2.0, 9.0), "blur": (100.0, 20.0, 300.0)}
    append(root, "scores", [score(i + 1, name, found[i]) for name, found in values.items() for i in range(3)])
    append(root, "selections", [selection(1, ["motion"]), selection(2, []), selection(3, ["motion", "blur"])])
    captions = [ok_row({}, caption_id=content_id("caption"), clip_id=clip_id(2), kind="human", text="a hill, at dusk")]
    append(root, "captions", captions)
    append(root, "latents", [latent(2)])
    return root


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("num_frames>=20", [2, 3]),
        ("num_frames != 20", [1, 3]),
        ("num_frames < 20", [1]),
        ("status = 'ok'", [1, 2, 3]),
        ("uri~CLIPS", [1, 2, 3]),
        ("cut_method=null", [1, 2, 3]),
        ("cut_method!=null", []),
        (f"clip_id={clip_id(3)}", [3]),
    ],
)
def test_a_filter_keeps_the_rows_it_describes(root, text, numbers):
    rows = select_rows(root, "clips", [parse_filter(text)], ["num_frames"])
    assert rows["num_frames"].to_pylist() == [10 * number for number in numbers]


def test_filters_are_joined_by_and_and_look_into_lists(root):
    rows = select_rows(root, "selections", [parse_filter("drop_reasons~blur"), parse_filter("keep=false")])
    assert rows["clip_id"].to_pylist() == [clip_id(3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_frames", "not COLUMN OPERATOR VALUE"),
        ("frames>3", "no column 'frames' to filter on: choose from clip_id"),
        ("num_frames>many", "'many' is not a int64"),
        ("__import__('os')=1", "not COLUMN OPERATOR VALUE"),
    ],
)
def test_a_filter_that_means_nothing_says_why(root, text, message):
    with pytest.raises(TableError, match=message):
        select_rows(root, "clips", [parse_filter(text)])


def test_a_table_is_found_by_root_and_name_or_by_its_own_uri(root):
    assert locate(root, "clips") == (root, "clips")
    assert locate(f"{root}/tables/clips/") == (root, "clips")
    assert locate(root) == (root, None)
    with pytest.raises(TableError, match="no tables under"):
        locate(root + "/elsewhere")
    with pytest.raises(TableError, match="there is no table 'clip'"):
        locate(root, "clip")
    with pytest.raises(TableError, match="is table 'clips', and the argument is 'scores'"):
        locate(f"{root}/tables/clips", "scores")


def test_binary_values_are_shown_as_their_sizes(root):
    rows = select_rows(root, "latents", columns=["latent", "shape"])
    assert rows.to_pylist() == [{"latent": 16, "shape": [1, 2, 2, 2]}]


def test_the_joined_view_has_a_row_a_clip_and_a_column_a_scorer(root):
    rows = clips_with_scores(root).to_pylist()
    assert [(row["clip_id"], row["motion"], row["blur"]) for row in rows] == [
        (clip_id(1), 0.5, 100.0),
        (clip_id(2), 2.0, 20.0),
        (clip_id(3), 9.0, 300.0),
    ]
    assert [row["caption"] for row in rows] == [None, "a hill, at dusk", None]
    assert [row["drop_reasons"] for row in rows] == [["motion"], [], ["motion", "blur"]]
    assert select_rows(root, CLIPS_WITH_SCORES, [parse_filter("motion>1")], ["caption"]).num_rows == 2


def test_the_joined_view_shows_the_newest_recipe_only(root):
    newer = Lineage("run", "select", "1", "another recipe", "code")
    append(root, "selections", [selection(1, []) | {"selection_id": content_id("newer")}], newer)
    assert [row["keep"] for row in clips_with_scores(root).to_pylist()] == [True, None, None]


def test_the_joined_view_of_clips_without_scores_is_the_clips(tmp_path):
    append(str(tmp_path), "clips", [clip(str(tmp_path), 1)])
    [row] = clips_with_scores(str(tmp_path)).to_pylist()
    assert (row["clip_id"], row["keep"], row["caption"]) == (clip_id(1), None, None)


def test_the_overview_counts_rows_once_and_attempts_apart(root):
    append(root, "videos", [bad_row({}, ("truncated", "ends early"), video_id=content_id("other"))])
    append(root, "videos", [ok_row({"attempt": 2}, video_id=content_id("other"))])
    [facts] = [one for one in overview(root) if one.table == "videos"]
    assert (facts.num_rows, facts.num_attempts, dict(facts.statuses)) == (2, 3, {"ok": 2})
    assert facts.size_bytes > 0


def test_stats_count_statuses_and_bin_numbers(root):
    append(root, "clips", [bad_row({}, ("timeout", "took too long"), clip_id=clip_id(9))])
    assert status_counts(root, "clips") == {("ok", ""): 3, ("failed", "timeout"): 1}
    assert [(one.name, one.edges[0], one.edges[-1]) for one in histograms(root, "scores")] == [
        ("blur", 20.0, 300.0),
        ("motion", 0.5, 9.0),
    ]


def test_diff_names_new_ids_changed_statuses_and_columns(root):
    append(root, "clips", [bad_row({}, ("timeout", "slow"), clip_id=clip_id(9))])
    before = table_version(root, "clips")
    append(root, "clips", [clip(root, 4)])
    append(root, "clips", [clip(root, 9, attempt=2)])
    found = diff(root, "clips", before, table_version(root, "clips"))
    assert (found.added, found.removed) == ([clip_id(4)], [])
    assert found.status_changes == [(clip_id(9), "failed", "ok")]
    assert found.columns["num_frames"] == ("10 … 30, mean 20", "10 … 90, mean 38")


def judged(number: int, reasons: list[str], split: str = "train") -> dict:
    own = {"keep": not reasons, "drop_reasons": reasons, "split": split, "bucket": "64x64x9@8"}
    return ok_row({}, selection_id=content_id(number, reasons, split), clip_id=clip_id(number), **own)


def test_a_diff_of_selections_names_clips_that_are_newly_kept_and_dropped_by_reason(root):
    before = table_version(root, "selections")
    verdicts = [judged(1, []), judged(2, ["duplicate_phash"]), judged(3, ["blur_low"]), judged(4, [])]
    append(root, "selections", verdicts, replace(LINEAGE, params_hash="stricter"))
    middle = table_version(root, "selections")
    found = selection_diff(root, before, middle)
    assert (found.num_kept, found.num_judged, found.same_settings) == ((1, 2), (3, 4), False)
    assert found.newly_kept == {"motion": [clip_id(1)], "new clip": [clip_id(4)]}
    assert found.newly_dropped == {"duplicate_phash": [clip_id(2)]}
    append(root, "selections", [judged(4, [], "val")], replace(LINEAGE, params_hash="stricter"))
    found = selection_diff(root, middle, table_version(root, "selections"))
    assert (found.newly_kept, found.newly_dropped, found.num_moved, found.same_settings) == ({}, {}, 1, True)


def test_a_diff_of_scores_shows_which_distributions_moved_and_how_far(root):
    before = table_version(root, "scores")
    changed = {**score(1, "motion", 9.5), "score_id": content_id("other settings")}
    unlabelled = ok_row({}, score_id=content_id("camera"), clip_id=clip_id(1), scorer="camera", details="{}")
    append(root, "scores", [changed, score(4, "motion", 9.0), unlabelled])
    [shift] = score_shifts(root, before, table_version(root, "scores"))
    assert (shift.scorer, shift.num_changed, shift.medians) == ("motion", 1, (2.0, 9.0))
    assert (shift.before.edges, sum(shift.before.counts), sum(shift.after.counts)) == (shift.after.edges, 3, 4)
    # three of four are at least 9 now, one of three was: 2/3 - 1/4
    assert shift.distance == pytest.approx(2 / 3 - 1 / 4)
    assert score_shifts(root, before, before) == []


def test_labels_come_from_the_details_of_the_newest_score(root):
    nested = {"details": json.dumps({"frames": [{"label": "cat"}]}), "score_id": content_id("frames")}
    append(root, "scores", [score(1, "classifier", 0.5) | nested])
    assert labels(root) == {}
    for number, label in enumerate(("static", "pan left")):
        details = {"details": json.dumps({"label": label}), "score_id": content_id("camera", number)}
        append(root, "scores", [score(1, "camera_motion", 0.5) | details])
    assert labels(root) == {"camera_motion": {clip_id(1): "pan left"}}


def test_exports_hold_the_latest_rows_in_each_format(root, tmp_path):
    append(root, "captions", [ok_row({"attempt": 2}, caption_id=content_id("caption"), text='a "hill",\nat dawn')])
    columns = ["caption_id", "text"]
    for form in ("csv", "jsonl", "parquet"):
        assert write_export(str(tmp_path / f"out.{form}"), *export_rows(root, "captions", columns=columns)) == 1
    expected = {"caption_id": content_id("caption"), "text": 'a "hill",\nat dawn'}
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [expected]
    assert json.loads((tmp_path / "out.jsonl").read_text()) == expected
    assert (tmp_path / "out.csv").read_text() == f'caption_id,text\n{expected["caption_id"]},"a ""hill"",\nat dawn"\n'
    with pytest.raises(TableError, match=r"end its name in \.csv, \.jsonl or \.parquet"):
        write_export("out.xlsx", *export_rows(root, "captions"))


def test_binary_columns_are_exported_to_parquet_and_left_out_of_text(root, tmp_path):
    write_export(str(tmp_path / "latents.parquet"), *export_rows(root, "latents"))
    assert pq.read_table(tmp_path / "latents.parquet")["latent"].to_pylist() == [bytes([2]) * 16]
    [header, line] = [line for line, _ in text_lines("csv", *export_rows(root, "latents"))]
    assert "latent," not in header.removeprefix("latent_id,")
    assert '"[1, 2, 2, 2]"' in line


def bad_findings(root: str, level: str = "fail") -> list[tuple[str, str]]:
    return [(one.table, one.check) for one in verify(root) if one.level == level]


def test_a_whole_root_passes_every_check(root):
    findings = list(verify(root))
    assert {one.level for one in findings} == {"ok"}
    assert len(findings) > 30


def test_verify_finds_a_changed_byte(root):
    append(root, "latents", [latent(3, latent=bytes(16))])
    assert bad_findings(root) == [("latents", "checksums and lengths of binary values")]
    assert not [one for one in verify(root, blobs=False) if one.level == "fail"]


def test_verify_finds_a_value_that_does_not_fill_its_shape(root):
    append(root, "latents", [latent(3, shape=[4, 4, 4, 4])])
    [finding] = [one for one in verify(root) if one.level == "fail"]
    assert "16 bytes, expected 512 (bfloat16)" in finding.example
    assert (blob_bytes([2, 3], "float32"), blob_bytes([2, 3], "bfloat16")) == (24, 12)


def test_verify_finds_ids_that_are_none(root):
    append(root, "captions", [ok_row({}, caption_id="7", clip_id=clip_id(1))])
    assert bad_findings(root) == [("captions", "ids are 32 hex digits")]


def test_verify_warns_of_rows_that_come_twice_and_fails_when_other_code_made_one(root):
    rows = read_table(root, "captions", newest=False)
    write_deltalake(table_uri(root, "captions"), rows, mode="append")
    assert bad_findings(root) == []
    [finding] = [one for one in verify(root, "captions") if one.level == "warn"]
    assert (finding.check, finding.num_bad) == ("one row per id and attempt", rows.num_rows)
    other = rows.set_column(rows.schema.get_field_index("code_version"), "code_version", [["other"] * rows.num_rows])
    write_deltalake(table_uri(root, "captions"), other, mode="append")
    assert bad_findings(root) == [("captions", "one row per id and attempt")]


def test_verify_finds_rows_without_a_reason_and_rows_that_refer_to_nothing(root):
    no_clip = score(7, "motion", 1.0) | {"status": "failed", "error_type": "gone", "error": "it has no clip"}
    append(root, "scores", [score(8, "motion", 1.0), score(9, "motion", 1.0) | {"status": "failed"}, no_clip])
    (lost,) = [one for one in verify(root, "scores") if one.check == "clip_id is in clips"]
    assert lost.num_bad == 1  # a row that failed may well have no clip
    assert bad_findings(root) == [("scores", "every row says ok, or why not"), ("scores", "clip_id is in clips")]


def test_verify_finds_missing_and_changed_media_files(root):
    os.unlink(Path(root, "media", "clips", f"{clip_id(1)}.mp4"))
    Path(root, "media", "clips", f"{clip_id(2)}.mp4").write_bytes(b"cut")
    [finding] = [one for one in verify(root) if one.level == "fail"]
    assert (finding.check, finding.num_bad) == ("media files are there", 2)


def test_verify_counts_in_and_out(root):
    append(root, "sources", [ok_row({}, source_id=content_id("b"), video_id=content_id("not yet cut"))])
    append(root, "videos", [ok_row({"attempt": 2}, video_id=VIDEO, clip_ids=[clip_id(1), clip_id(7)])])
    assert bad_findings(root, "warn") == [("sources", "every file became a video row")]
    assert bad_findings(root) == [("videos", "every clip of a video has its row")]


def test_verify_reports_a_table_of_another_version_and_goes_on(root):
    import pyarrow as pa

    write_deltalake(table_uri(root, "duplicates"), pa.table({"clip_id": ["a"]}))
    assert ("duplicates", "columns and files") in bad_findings(root)


def test_verify_reports_files_that_a_table_has_lost_and_checks_the_others(root):
    for path in Path(root, "tables", "clips").glob("*.parquet"):
        path.unlink()
    findings = list(verify(root))
    [lost] = [one for one in findings if one.level == "fail"]
    assert (lost.table, lost.check, lost.num_bad) == ("clips", "columns and files", 1)
    assert any(one.table == "scores" and one.check == "ids are 32 hex digits" for one in findings)
    assert [one.table for one in verify(root, "scores")].count("clips") == 0


def test_vacuum_removes_nothing_when_a_table_cannot_be_read(root):
    for path in Path(root, "tables", "clips").glob("*.parquet"):
        path.unlink()
    with pytest.raises(DamagedTableError, match="parquet is missing"):
        vacuum(root, older_than_h=0, delete=True)
    assert Path(root, "media", "clips", f"{clip_id(1)}.mp4").exists()


def test_vacuum_lists_and_then_removes_trainings_that_nobody_goes_on_with_and_empty_folders(root):
    state = Path(root, "checkpoints", "model", "state.pt")
    old = Path(root, "checkpoints", "old", "ray", "settings.json")
    empty = Path(root, "media", "clips", ".writing-y")
    for path in (state, old):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"state")
    empty.mkdir()
    for path in (old, empty):
        os.utime(path, (0, 0))
    assert vacuum(root) == ["checkpoints/old", "media/clips/.writing-y"]
    assert vacuum(root, delete=True) == ["checkpoints/old", "media/clips/.writing-y"]
    assert (state.exists(), old.parents[1].exists(), empty.exists()) == (True, False, False)
    assert vacuum(root, older_than_h=0) == ["checkpoints/model"]


def test_the_media_of_a_copied_root_are_kept(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    with pytest.raises(ValueError, match="this one was copied or moved"):
        vacuum(str(tmp_path / "copy"), older_than_h=0, delete=True)
    [left] = [one for one in verify(str(tmp_path / "copy")) if one.level == "warn"]
    assert left.num_bad == 3
    assert "this one was copied or moved" in left.advice


def test_vacuum_lists_and_then_removes_what_no_row_names(root):
    stray = Path(root, "media", "clips", ".writing-x", "0.mp4")
    stray.parent.mkdir()
    orphan = Path(root, "tables", "clips", "part-of-a-killed-writer.parquet")
    for path in (stray, orphan):
        path.write_bytes(b"half")
    assert sorted(bad_findings(root, "warn")) == [
        ("(files)", "no left-over files"),
        ("clips", "no left-over Parquet files"),
    ]
    assert all("--older-than 0" in one.advice for one in verify(root) if one.level == "warn")
    names = ["media/clips/.writing-x/0.mp4", "tables/clips/part-of-a-killed-writer.parquet"]
    assert vacuum(root, older_than_h=1) == []
    assert vacuum(root, older_than_h=0) == names
    assert stray.exists()
    assert vacuum(root, older_than_h=0, delete=True) == names
    assert not stray.parent.exists()
    assert not orphan.exists()
    assert bad_findings(root, "warn") == bad_findings(root) == []
    assert Path(root, "media", "clips", f"{clip_id(1)}.mp4").exists()


def test_verify_compares_the_checksums_of_media_on_request(root):
    path = Path(root, "media", "clips", f"{clip_id(2)}.mp4")
    append(root, "clips", [clip(root, 2, attempt=2, crc32=zlib.crc32(path.read_bytes()))])
    assert not [one for one in verify(root, media=True) if one.level == "fail"]
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert bad_findings(root) == []
    [finding] = [one for one in verify(root, media=True) if one.level == "fail"]
    assert (finding.table, finding.check) == ("clips", "media files are there and unchanged")
    assert f"{path} was changed" in finding.example
