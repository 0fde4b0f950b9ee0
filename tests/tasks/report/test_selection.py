"""What the report says of scores and of the rules that judge them."""

import re

from pyramid_model.config import Config
from tasks.inspecting.table_stats import labels
from tasks.report.duplicates import read_duplicates
from tasks.report.figures import Threshold
from tasks.report.selection import label_figures, rule_examples, score_figures
from tasks.running.run import Run
from tasks.running.step import step
from tasks.selecting.select_config import Bounds, SelectResult
from tasks.tables.content_ids import content_id

CLIP_IDS = [content_id("clip", number) for number in range(8)]
THRESHOLDS = {"motion": [Threshold(3.0, "above"), Threshold(6.5, "below")]}


@step
def select(run: Run, config: Config) -> SelectResult:
    return SelectResult(step="select", selection="recipe", thresholds={"motion": Bounds(min=1.25)})


def test_thresholds_are_drawn_into_the_histograms_of_their_scores(tmp_path, page_of, write_root):
    root = str(tmp_path / "root")
    write_root(root, "sources", "clips")
    select(Run(root=root), Config())
    assert re.findall(r'class="tick limit-label"[^>]*>([^<]*)<', page_of(root)) == ["≥ 1.25"]


def test_limits_say_how_many_clips_each_of_them_drops(curation):
    figures = {figure.name: figure for figure in score_figures(curation, THRESHOLDS)}
    assert list(figures) == ["duration_s", "motion"]  # the camera's labels are no numbers
    assert [(limit.words, limit.num_dropped) for limit in figures["motion"].limits] == [("≥ 3", 3), ("≤ 6.5", 0)]
    assert (figures["motion"].count, figures["motion"].num_without) == (8, 0)


def test_labels_are_counted_with_the_clips_that_stay(curated_root, curation):
    [figure] = label_figures(curation, labels(curated_root))
    assert (figure.scorer, figure.counts) == ("camera_motion", [("static", 3, 1), ("pan left", 1, 0)])


def test_examples_of_a_limit_are_the_clips_next_to_it_and_of_copies_those_that_are_kept(curated_root, curation):
    low, copies = rule_examples(curation, THRESHOLDS, read_duplicates(curated_root, curation))
    assert (low.reason, low.limit) == ("motion_low", "≥ 3")
    assert [(clip.clip_id, clip.words) for clip in low.dropped] == [(CLIP_IDS[n], str(n)) for n in (2, 1, 0)]
    assert [clip.words for clip in low.kept] == ["3", "4", "6"]
    assert (copies.reason, copies.limit, copies.about_kept) == ("duplicate_phash", "", "kept instead")
    assert [clip.clip_id for clip in copies.dropped] == [CLIP_IDS[1], CLIP_IDS[5]]
    assert [clip.clip_id for clip in copies.kept] == [CLIP_IDS[4]]  # of clips 0 and 1 none is kept
