"""Figures of one table, as `pyramid manifest stats` prints them."""

from typer.testing import CliRunner

from flows.cli.manifest import app
from tasks.inspecting.table_stats import score_label
from tasks.tables.appending import append_block
from tasks.tables.delta import Lineage, ok_row


def test_a_score_is_labelled_with_its_unit_or_range_and_the_better_direction():
    assert score_label("borders") == "share of the frame that is letterbox or pillarbox, 0 to 1; lower is better"
    assert score_label("brightness") == "mean luma, 0 to 255"
    assert score_label("duration_s") == "length of the clip, s"
    assert score_label("watermark") == ""  # named by a recipe


def test_the_histograms_of_scores_come_with_what_each_score_is(tmp_path):
    rows = [
        ok_row({}, score_id=f"{scorer}{number}", clip_id=str(number), scorer=scorer, value=number / 2)
        for scorer in ("borders", "watermark")
        for number in range(3)
    ]
    append_block(str(tmp_path), "scores", rows, "scores", Lineage("run", "step", "1", "settings", "code"))
    output = CliRunner().invoke(app, ["stats", str(tmp_path), "scores"], env={"COLUMNS": "120"}).output
    assert "share of the frame that is letterbox or pillarbox, 0 to 1; lower is better" in output
    assert output.count("watermark") == 1
