"""What the report says of curation: nothing is lost without a reason, and counts agree with the tables. About 3 s."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from tasks.inspecting.table_stats import labels
from tasks.report.clips import as_noted, chosen_clips, file_facts
from tasks.report.curation import aspect_name, bucket_lines, read_curation, set_lines, split_lines
from tasks.report.duplicates import read_duplicates, why_first
from tasks.report.errors import error_lines
from tasks.report.figures import Threshold
from tasks.report.funnel import accounts, funnel, read_intake
from tasks.report.selection import label_figures, rule_examples, score_figures
from tasks.report.sources import sources
from tasks.tables.delta import Lineage, append_block, bad_row, content_id, ok_row

NUM_CLIPS = 8
CLIP_IDS = [content_id("clip", number) for number in range(NUM_CLIPS)]
THRESHOLDS = {"motion": [Threshold(3.0, "above"), Threshold(6.5, "below")]}


def append(root: str, table: str, rows: list[dict], recipe: str = "recipe") -> None:
    lineage = Lineage("run", "step", "1", recipe, "code")
    append_block(root, table, rows, content_id(table, recipe, len(rows)), lineage)


def verdict(number: int, recipe: str, reasons: list[str]) -> dict:
    own = {
        "keep": not reasons,
        "drop_reasons": reasons,
        "bucket": "36x64x9@8",
        "split": "val" if number == 4 else "train",
    }
    return ok_row({}, selection_id=content_id(recipe, number), clip_id=CLIP_IDS[number], **own)


def reasons_of(number: int) -> list[str]:
    motion = ["motion_low"] * (number < 3) + ["motion_high"] * (number > 6)
    return motion + ["duplicate_phash"] * (number in (1, 5))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """Five files, one of them unreadable and one a copy; three videos, one of them broken; eight clips, one unjudged.

    Motion of clip n is n; limits are 3 and 6.5; clips 0 and 1, and 4 and 5, show the same.
    """
    root = str(tmp_path_factory.mktemp("curation") / "root")
    files = [("a.mp4", "a"), ("b.mp4", "b"), ("copy of b.mp4", "b"), ("broken.mp4", "c")]
    rows = [
        ok_row({}, source_id=content_id("s", path), video_id=content_id("v", video), path=path, source="films")
        for path, video in files
    ]
    locked = bad_row({}, ("unreadable", "no permission"), source_id=content_id("s", 4), video_id="", path="locked.mp4")
    append(root, "sources", [*rows, locked | {"source": "films"}])
    videos = [
        ok_row({}, video_id=content_id("v", name), path=f"{name}.mp4", num_clips=4, duration_s=4.0, clip_ids=own)
        for name, own in (("a", CLIP_IDS[:4]), ("b", CLIP_IDS[4:]))
    ]
    append(root, "videos", [*videos, bad_row({}, ("truncated", "ends early"), video_id=content_id("v", "c"))])
    clips = [
        ok_row(
            {},
            clip_id=clip_id,
            video_id=content_id("v", "a" if number < 4 else "b"),
            uri=f"{root}/media/{number}.mp4",
            start_s=float(number % 4),
            end_s=number % 4 + 1.0,
            **{"num_frames": 8, "fps_num": 8, "fps_den": 1, "width": 64, "height": 36, "size_bytes": 100 - number},
        )
        for number, clip_id in enumerate(CLIP_IDS)
    ]
    append(root, "clips", clips)
    motion = [
        ok_row({}, score_id=content_id("m", n), clip_id=clip_id, scorer="motion", value=float(n), details="{}")
        for n, clip_id in enumerate(CLIP_IDS)
    ]
    camera = [
        ok_row(
            {},
            score_id=content_id("k", n),
            clip_id=clip_id,
            scorer="camera_motion",
            details=json.dumps({"label": label}),
        )
        for n, (clip_id, label) in enumerate(zip(CLIP_IDS, ["static", "pan left", "static", "static"], strict=False))
    ]
    append(root, "scores", [*motion, *camera])
    groups = [(0, "x", 0), (1, "x", 1), (4, "y", 0), (5, "y", 1)]
    rows = [
        ok_row({}, duplicate_id=content_id("d", n), clip_id=CLIP_IDS[n], method="phash", group_id=group, rank=rank)
        for n, group, rank in groups
    ]
    append(root, "duplicates", [row | {"keeper": row["rank"] == 0, "num_clips": 2, "similarity": 0.9} for row in rows])
    append(root, "selections", [verdict(n, "wide", []) for n in range(NUM_CLIPS)], "wide")
    append(root, "selections", [verdict(n, "strict", reasons_of(n)) for n in range(NUM_CLIPS - 1)], "strict")
    return root


@pytest.fixture(scope="module")
def curation(root):
    return read_curation(root)


def test_every_stop_of_the_funnel_says_what_it_lost_and_why(root, curation):
    stops = funnel(read_intake(root), curation)
    assert [(stop.label, stop.count, stop.lost) for stop in stops] == [
        ("source files", 5, 0),
        ("different videos", 3, 2),
        ("videos with clips", 2, 1),
        ("clips", 8, 0),
        ("after motion_low", 5, 3),
        ("after duplicate_phash", 4, 1),
        ("judged", 3, 1),
        ("kept", 3, 0),
    ]
    assert stops[1].why == "1 unreadable, 1 with the bytes of another"
    assert stops[2].why == "1 truncated"


def test_counts_in_are_counts_out_until_rows_are_lost(root, curation):
    found = accounts(read_intake(root), curation)
    assert all(account.adds_up for account in found)
    assert found[0].parts == {"videos": 3, "with the bytes of another": 1, "failed": 1}
    assert found[2].parts == {"kept": 3, "dropped": 4, "not judged yet": 1}
    lost = replace(curation, clips=curation.clips.slice(1))
    assert [account.adds_up for account in accounts(read_intake(root), lost)] == [True, True, False]


def test_limits_say_how_many_clips_each_of_them_drops(curation):
    figures = {one.name: one for one in score_figures(curation, THRESHOLDS)}
    assert list(figures) == ["duration_s", "motion"]  # the camera's labels are no numbers
    assert [(limit.words, limit.num_dropped) for limit in figures["motion"].limits] == [("≥ 3", 3), ("≤ 6.5", 0)]
    assert (figures["motion"].count, figures["motion"].num_without) == (8, 0)


def test_labels_are_counted_with_the_clips_that_stay(root, curation):
    [figure] = label_figures(curation, labels(root))
    assert (figure.scorer, figure.counts) == ("camera_motion", [("static", 3, 1), ("pan left", 1, 0)])


def test_examples_of_a_limit_are_the_clips_next_to_it_and_of_copies_those_that_are_kept(root, curation):
    low, copies = rule_examples(curation, THRESHOLDS, read_duplicates(root, curation))
    assert (low.reason, low.limit) == ("motion_low", "≥ 3")
    assert [(clip.clip_id, clip.words) for clip in low.dropped] == [(CLIP_IDS[n], str(n)) for n in (2, 1, 0)]
    assert [clip.words for clip in low.kept] == ["3", "4", "6"]
    assert (copies.reason, copies.limit, copies.about_kept) == ("duplicate_phash", "", "kept instead")
    assert [clip.clip_id for clip in copies.dropped] == [CLIP_IDS[1], CLIP_IDS[5]]
    assert [clip.clip_id for clip in copies.kept] == [CLIP_IDS[4]]  # of clips 0 and 1 none is kept


def test_splits_buckets_and_sources_count_what_is_kept(root, curation):
    assert [(line.split, line.num_videos, line.num_clips, line.seconds) for line in split_lines(curation)] == [
        ("train", 2, 2, 2.0),
        ("val", 1, 1, 1.0),
    ]
    [bucket] = bucket_lines(curation)
    assert (bucket.aspect, bucket.splits, bucket.num_clips) == ("16:9", {"train": 2, "val": 1, "test": 0}, 3)
    [source] = sources(root, curation)
    assert source.statuses == {"ok": 3, "failed": 2}
    assert (source.total("num_clips"), source.total("num_kept"), source.total("kept_s")) == (8, 3, 3.0)


def test_that_a_wider_set_dropped_a_clip_is_said_only_where_nothing_else_is(curation):
    lists = [["not_in_wide", "motion_low"], ["not_in_wide"], [], *[[]] * 5]
    column = curation.clips.column_names.index("drop_reasons")
    clips = curation.clips.set_column(column, "drop_reasons", pa.array(lists, pa.list_(pa.string())))
    found = replace(curation, clips=clips).rules
    assert [(rule.reason, rule.alone, rule.only) for rule in found] == [("not_in_wide", 1, 1), ("motion_low", 1, 1)]


def test_each_nested_set_is_counted_for_itself(root, curation):
    wide, strict = set_lines(root, curation, {"wide": "wide", "strict": "strict"})
    assert (wide.num_clips, wide.seconds, wide.is_shown) == (8, 8.0, False)
    assert (strict.num_clips, strict.splits["val"], strict.is_shown) == (3, 1, True)


def test_a_group_of_duplicates_begins_with_its_keeper_and_says_why_it_is(root, curation):
    found = read_duplicates(root, curation)
    assert found.extra_clips == {"phash": 2}
    [first] = [group for group in found.groups if group.members[0].clip["clip_id"] == CLIP_IDS[0]]
    assert [(one.clip["clip_id"], one.rank) for one in first.members] == [(CLIP_IDS[0], 0), (CLIP_IDS[1], 1)]
    assert first.why == "larger file: 100 B, the next 99 B"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"width": 32, "height": 18}, "more pixels: 64×36, the next 32×18"),
        ({"num_frames": 40, "size_bytes": 200}, "longer: 80 frames, the next 40"),
        ({"num_frames": 78, "size_bytes": 50}, "larger file: 100 B, the next 50 B"),
        ({}, "about as long, and equal in size: the smallest id"),
    ],
)
def test_the_keeper_is_explained_by_the_first_figure_in_which_it_is_ahead(changed, why):
    clip = {"width": 64, "height": 36, "size_bytes": 100, "num_frames": 80}
    assert why_first(clip, clip | changed) == why


def test_rules_and_groups_take_turns_for_the_room_that_previews_have(curation):
    assert chosen_clips(curation, [[CLIP_IDS[7], CLIP_IDS[6]], [CLIP_IDS[5]]], 3) == [CLIP_IDS[n] for n in (7, 5, 6)]
    every = chosen_clips(curation, [], 100)
    assert sorted(every) == sorted(CLIP_IDS)
    # three that are kept or not judged, then a dropped one, reasons taking turns
    assert every[:4] == [CLIP_IDS[n] for n in (3, 4, 6, 0)]
    assert every[4:6] == [CLIP_IDS[n] for n in (7, 5)]


def test_a_file_that_comes_back_makes_the_page_old(root, curation, tmp_path):
    facts = file_facts(curation, CLIP_IDS[:1])
    assert facts == {CLIP_IDS[0]: [f"{root}/media/0.mp4", 100, "missing"]}
    assert as_noted(facts)
    (tmp_path / "0.mp4").write_bytes(bytes(100))
    assert not as_noted({CLIP_IDS[0]: [str(tmp_path / "0.mp4"), 100, "missing"]})


def test_errors_come_with_what_to_do(root):
    assert {(line.table, line.error_type, line.count) for line in error_lines(root)} == {
        ("sources", "unreadable", 1),
        ("videos", "truncated", 1),
    }
    assert all(line.advice for line in error_lines(root))


@pytest.mark.parametrize(
    ("size", "name"), [((1280, 720), "16:9"), ((720, 1280), "9:16"), ((640, 384), "5:3"), ((1000, 400), "2.5:1")]
)
def test_aspects_have_their_common_names(size, name):
    assert aspect_name(*size) == name
