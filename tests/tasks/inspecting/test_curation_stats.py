"""Figures of duplicates and selections. About 2 s."""

from collections import Counter

import pytest
from typer.testing import CliRunner

from flows.cli.manifest import app
from tasks.inspecting.curation_stats import duplicate_stats, selection_stats
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, ok_row


def append(root: str, table: str, *rows: dict, settings: str = "settings") -> None:
    block = content_id(table, settings, [repr(row) for row in rows])
    append_block(root, table, rows, block, Lineage("run", "step", "1", settings, "code"))


def verdict(name: str, *reasons: str, subset: str = "", split: str = "train") -> dict:
    own = {"keep": not reasons, "drop_reasons": list(reasons), "split": split, "bucket": "48x80x9@24", "subset": subset}
    return ok_row({}, selection_id=content_id(name, subset, reasons), clip_id=name, **own)


@pytest.fixture
def root(tmp_path) -> str:
    root = str(tmp_path)
    append(root, "clips", *(ok_row({}, clip_id=name, video_id=f"v{name}") for name in "abcd"))
    append(root, "videos", *(ok_row({}, video_id=f"v{name}", source="films" if name < "c" else "") for name in "abcd"))
    return root


def test_groups_are_counted_by_method_and_size_without_those_that_dissolved(root):
    for method, group, similarities in (
        ("phash", "1", (0.9, 0.95, 0.99)),
        ("phash", "2", (1, 1)),
        ("exact", "3", (1, 1)),
    ):
        for number, similarity in enumerate(similarities):
            columns = {"method": method, "group_id": group, "keeper": not number, "similarity": float(similarity)}
            append(root, "duplicates", ok_row({}, duplicate_id=content_id(group, number), clip_id="a", **columns))
    row = {"status": "skipped", "duplicate_id": content_id("left"), "method": "phash", "group_id": "", "clip_id": "d"}
    append(root, "duplicates", row)
    exact, phash = duplicate_stats(root)
    assert (exact.method, exact.num_groups, exact.num_extra, exact.sizes) == ("exact", 1, 1, Counter({2: 1}))
    assert (phash.num_groups, phash.num_clips, phash.num_extra, phash.sizes) == (2, 5, 3, Counter({3: 1, 2: 1}))
    assert (phash.similarity.edges[0], phash.similarity.edges[-1]) == (0.9, 1.0)
    output = CliRunner().invoke(app, ["stats", root, "duplicates"], env={"COLUMNS": "160"}).output
    assert "1 of 2, 1 of 3" in output


def test_each_nested_set_is_counted_by_rule_source_bucket_and_split(root):
    wide = [verdict(name, subset="small", split="val" if name == "b" else "train") for name in "abc"]
    append(root, "selections", *wide, verdict("d", "motion_low", subset="small"), settings="small")
    narrow = [verdict("a", subset="large"), verdict("b", "beauty_low", subset="large")]
    narrow += [verdict("c", "beauty_low", "too_short", subset="large"), verdict("d", "not_in_small", subset="large")]
    append(root, "selections", *narrow, verdict("e", "not_current", subset="large"), settings="large")
    small, large = selection_stats(root)
    assert (small.name, small.kept, small.judged) == ("small", 3, 4)
    assert (large.name, large.kept, large.judged) == ("large", 1, 4)
    assert {(rule.reason, rule.alone, rule.only) for rule in large.rules} == {
        *(("beauty_low", 2, 1), ("too_short", 1, 0), ("not_in_small", 1, 1))
    }
    assert small.shares["source"] == {"films": Counter(train=1, val=1), "(none)": Counter(train=1)}
    assert small.shares["bucket"] == {"48x80x9@24": Counter(train=2, val=1)}
    output = CliRunner().invoke(app, ["stats", root, "selections"], env={"COLUMNS": "120"}).output
    assert "newest selection, set large: 1 of 4 clips kept" in output


def test_without_sets_only_the_newest_selection_counts(root):
    append(root, "selections", verdict("a", subset="small"), settings="small")
    append(root, "selections", verdict("a"), verdict("b", "motion_low"), settings="plain")
    (stats,) = selection_stats(root)
    assert (stats.name, stats.kept, stats.judged) == ("", 1, 2)
