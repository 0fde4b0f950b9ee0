"""Clips on the page of the report: which are shown moving, the listing for the search, and files that are gone."""

import json
import shutil
from pathlib import Path

from tasks.report.clips import file_states, is_unchanged, preview_clips, script_json
from tasks.tables.content_ids import content_id

NUM_CLIPS, NUM_CURATED = 6, 8  # in `whole_root`; in `curated_root`
CLIP_IDS = [content_id("clip", number) for number in range(NUM_CURATED)]
CAPTION = "A rabbit <yawns> & stretches"


def test_the_listing_holds_each_clip_with_its_scores_verdict_and_caption(whole_root, page_of, embedded):
    facts = embedded(page_of(whole_root), "listing")
    columns, words = facts["columns"], facts["words"]
    place = columns["id"].index(CLIP_IDS[1])
    assert sorted(columns["id"]) == sorted(CLIP_IDS[:NUM_CLIPS])
    assert (columns["keep"][place], columns["caption"][place], columns["reasons"][place]) == (True, CAPTION, [])
    assert columns["captions"][place] == []
    both = [["dense", "A hill and a cloud."], ["short", "A hill."]]
    assert columns["captions"][columns["id"].index(CLIP_IDS[2])] == both
    assert (facts["scores"]["motion"][place], facts["scores"]["sharpness"][place]) == (1.5, 50.0)
    assert words["path"]["values"][words["path"]["at"][place]] == "meadow.mp4"
    short = page_of(whole_root, max_listed=2, max_media=1)
    assert len(embedded(short, "listing")["columns"]["id"]) == 2
    assert len(embedded(short, "thumbnails")["thumbnails"]) == 1
    assert "2 of 6 clips" in short


def test_clips_whose_files_are_gone_or_cut_short_are_counted_also_when_no_table_changed(
    tmp_path, page_of, embedded, write_root
):
    root = str(tmp_path / "root")
    write_root(root, "sources", "clips")
    assert "truncated or changed" not in page_of(root)
    lost, cut = (Path(root, "media", "clips", f"{clip_id}.mp4") for clip_id in CLIP_IDS[1:3])
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:1000])
    page = page_of(root)
    assert "1 missing, 1 truncated or changed" in page
    facts = embedded(page, "thumbnails")
    assert facts["damage"] == {CLIP_IDS[1]: "missing", CLIP_IDS[2]: "truncated"}
    assert not facts["damage"].keys() & facts["thumbnails"].keys()
    shutil.rmtree(Path(root, "media"))
    assert f"{NUM_CLIPS} missing, 0 truncated or changed" in page_of(root)


def test_marks_that_turn_the_direction_of_writing_are_written_out_in_the_listing():
    text = script_json({"words": {"a\u202eb": ["c\u2066d", ("\x1b[2J", 1, None)]}, "caption": "two\nlines </script>"})
    assert not set("\u202e\u2066\x1b<") & set(text)
    values = {"words": {r"a\u202eb": [r"c\u2066d", [r"\x1b[2J", 1, None]]}, "caption": "two\nlines </script>"}
    assert json.loads(text) == values


def test_rules_and_groups_take_turns_for_the_room_that_previews_have(curation):
    assert preview_clips(curation, [[CLIP_IDS[7], CLIP_IDS[6]], [CLIP_IDS[5]]], 3) == [CLIP_IDS[n] for n in (7, 5, 6)]
    every = preview_clips(curation, [], 100)
    assert sorted(every) == sorted(CLIP_IDS)
    # three that are kept or not judged, then a dropped one, reasons taking turns
    assert every[:4] == [CLIP_IDS[n] for n in (3, 4, 6, 0)]
    assert every[4:6] == [CLIP_IDS[n] for n in (7, 5)]


def test_a_file_that_comes_back_makes_the_page_old(curated_root, curation, tmp_path):
    states = file_states(curation, CLIP_IDS[:1])
    assert states == {CLIP_IDS[0]: (f"{curated_root}/media/0.mp4", 100, "missing")}
    assert is_unchanged(states)
    (tmp_path / "0.mp4").write_bytes(bytes(100))
    assert not is_unchanged({CLIP_IDS[0]: [str(tmp_path / "0.mp4"), 100, "missing"]})
