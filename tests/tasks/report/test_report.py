"""Report: one page that says what is in the tables, and what is not there yet. About 15 s."""

import base64
import io
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyramid_model.config import Config
from pyramid_model.video.video import write_video
from tasks.inspecting.table_stats import histogram
from tasks.report.figures import Series, Threshold, histogram_figure, line_chart, smoothed
from tasks.report.media import BESIDE_TEXT, THUMBNAIL, MediaBudget, small_frames
from tasks.report.models import bucket_shape, flat_figures, sign
from tasks.report.report import ReportConfig, report
from tasks.report.run import step_lines, step_records
from tasks.running.run import Run, StepResult
from tasks.running.step import step
from tasks.tables.delta import Lineage, append_block, bad_row, content_id, ok_row

LINEAGE = Lineage("run", "step", "1", "recipe", "code")
NUM_CLIPS = 6
CLIP_IDS = [content_id("clip", number) for number in range(NUM_CLIPS)]
CAPTION = "A rabbit <yawns> & stretches"


def moving_square(seed: int, side: int = 64, num_frames: int = 24) -> np.ndarray:
    """A bright square that wanders over a coloured slope; (t h w c) uint8."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(30, 160, side, dtype=np.float32)
    frames = np.empty((num_frames, side, side, 3), np.uint8)
    frames[:] = (slope[None, :, None, None] * rng.uniform(0.3, 1, 3)).astype(np.uint8)
    for t in range(num_frames):
        x, y = (int((side - 16) * (0.5 + 0.5 * np.sin(seed + t / 6 + phase))) for phase in (0, 1.5))
        frames[t, y : y + 16, x : x + 16] = 255 - slope.astype(np.uint8)[:16, None, None]
    return frames


def append(root: str, table: str, rows: list[dict]) -> None:
    append_block(root, table, rows, content_id(table, rows[0].get("status"), len(rows)), LINEAGE)


def video(root: str, *parts: str, seed: int = 0, side: int = 64) -> str:
    uri = str(Path(root, "media", *parts))
    write_video(uri, moving_square(seed, side), 12)
    return uri


def write_sources(root: str) -> None:
    films = Path(root).parent / "films"
    films.mkdir()
    card = films / "source.yaml"
    card.write_text(
        "name: films\nattribution: Films by nobody in particular\nurl: https://example.org/films\n"
        "files: [{path: meadow.mp4, title: A meadow, changes: cut shorter}]\n"
    )
    common = {"source": "films", "license": "CC-BY-3.0", "card": str(card)}
    rows = [
        ok_row(
            {}, source_id=content_id("s", i), video_id=content_id("v", i), uri=f"{films}/{name}", path=name, **common
        )
        for i, name in enumerate(("meadow.mp4", "broken.mp4"))
    ]
    append(root, "sources", rows)


def write_clips(root: str) -> None:
    facts = {"width": 640, "height": 360, "fps_num": 24, "fps_den": 1, "codec": "h264", "num_frames": 480}
    facts |= {"path": "meadow.mp4", "source": "films"}
    good = ok_row(
        {}, video_id=content_id("v", 0), duration_s=20.0, num_shots=6, num_clips=NUM_CLIPS, clip_ids=CLIP_IDS, **facts
    )
    broken = bad_row({}, ("truncated", "ends after 3 of 9 s"), video_id=content_id("v", 1))
    append(root, "videos", [good, broken])
    clips, scores, selections = [], [], []
    for number, clip_id in enumerate(CLIP_IDS):
        uri = video(root, "clips", f"{clip_id}.mp4", seed=number, side=320 if number == 0 else 64)
        times = {"start_s": 3.0 * number, "end_s": 3.0 * number + 2, "num_frames": 24, "width": 64, "height": 64}
        times["size_bytes"] = Path(uri).stat().st_size
        clips.append(ok_row({}, clip_id=clip_id, video_id=content_id("v", 0), uri=uri, **times))
        for scorer, value in (("motion", 0.5 + number), ("sharpness", 100.0 / (1 + number))):
            ids = {"score_id": content_id(clip_id, scorer), "clip_id": clip_id}
            scores.append(ok_row({}, **ids, scorer=scorer, value=value))
        own = {
            "keep": number > 0,
            "drop_reasons": [] if number else ["motion"],
            "split": "val" if number == 5 else "train",
        }
        selections.append(ok_row({}, selection_id=content_id("sel", number), clip_id=clip_id, **own))
    append(root, "clips", clips)
    append(root, "scores", scores)
    append(root, "selections", selections)
    text = {"caption_id": content_id("caption"), "clip_id": CLIP_IDS[1], "kind": "human", "text": CAPTION}
    short = {"caption_id": content_id("short"), "clip_id": CLIP_IDS[2], "kind": "short", "text": "A hill."}
    dense = {"caption_id": content_id("dense"), "clip_id": CLIP_IDS[2], "kind": "dense", "text": "A hill and a cloud."}
    append(root, "captions", [ok_row({}, **row) for row in (text, short, dense)])


def write_models(root: str) -> None:
    losses = [1 / (1 + step / 20) + 0.05 * np.sin(step) ** 2 for step in range(0, 300, 5)]
    curve = [{"step": 5 * i, "loss": loss, "lr": 1e-4} for i, loss in enumerate(losses)]
    curve[0] |= {"val_loss": 1.1}
    curve[-1] |= {"val_loss": 0.12}
    for kind in ("vae", "dit"):
        own = {
            "model_id": content_id(kind),
            "kind": kind,
            "weights_hash": content_id(kind, "weights"),
            "num_steps": 300,
        }
        json_columns = {"curve": json.dumps(curve), "metrics": json.dumps({"val_loss": 0.12}), "config": "{}"}
        append_block(root, "models", [ok_row({}, **own, **json_columns)], kind, LINEAGE)
    for candidate in ("untrained", "trained"):
        write_evaluation(root, candidate)


def write_evaluation(root: str, candidate: str) -> None:
    evaluation_id, passed = content_id("evaluation", candidate), candidate == "trained"
    check = {
        "name": "val_loss_to_untrained",
        "value": 0.4 if passed else 1.0,
        "limit": 0.9,
        "passed": passed,
        "rule": "",
    }
    sample, restored = (video(root, "evaluations", evaluation_id, f"{name}-0.mp4") for name in ("sample", "restored"))
    metrics = {
        "candidate": candidate,
        **{"val_loss": 0.12, "val_loss_untrained": 1.1, "vae_psnr": 24.5, "vae_psnr_untrained": 6.1},
        "samples": [{"prompt": CAPTION, "uri": sample, "clip_id": CLIP_IDS[1], "seed": 0}],
        "reconstructions": [{"clip_id": CLIP_IDS[5], "uri": restored, "psnr": 23.25}],
    }
    row = ok_row(
        {},
        evaluation_id=evaluation_id,
        model_id=content_id("dit"),
        weights_hash=content_id("dit", "weights"),
        metrics=json.dumps(metrics),
        checks=json.dumps([check]),
        passed=passed,
        media=[sample, restored],
    )
    append_block(root, "evaluations", [row], candidate, LINEAGE)


def write_generations(root: str) -> None:
    rows = [
        ok_row(
            {},
            generation_id=content_id("generation", number),
            prompt=prompt,
            seed=number,
            settings='{"guidance_scale": 4.0}',
            timings='{"total_s": 3.25}',
            weights_hash=content_id("dit", "weights"),
            uri=video(root, "generated", f"{number}.mp4", seed=number),
        )
        for number, prompt in enumerate((CAPTION, "Something never filmed"))
    ]
    append(root, "generations", rows)


def write_whole_root(root: str) -> None:
    """A run from source files to generated clips."""
    for write in (write_sources, write_clips, write_models, write_generations):
        write(root)


@pytest.fixture(scope="module")
def whole_root(tmp_path_factory) -> str:
    root = str(tmp_path_factory.mktemp("report") / "root")
    write_whole_root(root)
    return root


def page_of(root: str, **settings) -> str:
    result = report(Run(root=root), ReportConfig(**settings))
    return Path(result.outputs["report"]).read_text()


def test_the_page_needs_nothing_but_itself(whole_root):
    page = page_of(whole_root)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {source.split(":")[0] for source in sources if not source.startswith("#")} == {"data", "https"}
    assert [source for source in sources if source.startswith("https")] == ["https://example.org/films"]
    assert "<link" not in page
    assert "@import" not in page


class Balance(HTMLParser):
    """Collects elements that are closed in another order than they were opened, or never."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.wrong = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def test_every_element_of_the_page_is_closed(whole_root, tmp_path):
    for root in (whole_root, str(tmp_path)):
        balance = Balance(page_of(root))
        assert (balance.wrong, balance.open) == ([], [])


def test_the_page_shows_what_is_in_the_tables(whole_root):
    page = page_of(whole_root, title="A run & more")
    for text in (
        *("A run &amp; more", "A rabbit &lt;yawns&gt; &amp; stretches", "Something never filmed", "CC-BY-3.0"),
        *("Films by nobody in particular", "ends after 3 of 9 s", "5 of 6 clips kept", "24.5 dB, untrained 6.1"),
        *("val_loss_to_untrained", "did not pass", "histogram of sharpness", "no training clip has this prompt"),
        *("cut shorter", "23.2 dB", "untrained model"),
    ):
        assert text.replace(" dB, untrained 6.1", " dB") in page
    assert "untrained 6.1 dB" in page
    assert "<yawns>" not in page


def embedded(page: str, name: str):
    """Data that the page's script reads."""
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)[1])


def test_videos_in_the_page_are_small_and_play(whole_root):
    page = page_of(whole_root)
    videos = re.findall(r'<video src="data:video/mp4;base64,([^"]+)"', page)
    # two generated ones and a training clip, two samples with it, one reconstruction
    assert len(videos) == 2 + 1 + 4 + 1
    thumbnails = embedded(page, "thumbnails")["thumbnails"]
    assert set(thumbnails) == set(CLIP_IDS)
    for video in [*videos, *thumbnails.values()]:
        frames, fps = small_frames(base64.b64decode(video), BESIDE_TEXT)
        assert fps == 12
        assert frames.shape[0] == 24
        assert max(frames.shape[1:3]) <= 320


def test_the_listing_holds_each_clip_with_its_scores_verdict_and_caption(whole_root):
    found = embedded(page_of(whole_root), "listing")
    columns, words = found["columns"], found["words"]
    place = columns["id"].index(CLIP_IDS[1])
    assert sorted(columns["id"]) == sorted(CLIP_IDS)
    assert (columns["keep"][place], columns["caption"][place], columns["reasons"][place]) == (True, CAPTION, [])
    assert columns["captions"][place] == []
    both = [["dense", "A hill and a cloud."], ["short", "A hill."]]
    assert columns["captions"][columns["id"].index(CLIP_IDS[2])] == both
    assert (found["scores"]["motion"][place], found["scores"]["sharpness"][place]) == (1.5, 50.0)
    assert words["path"]["values"][words["path"]["at"][place]] == "meadow.mp4"
    short = page_of(whole_root, max_listed=2, max_media=1)
    assert len(embedded(short, "listing")["columns"]["id"]) == 2
    assert len(embedded(short, "thumbnails")["thumbnails"]) == 1
    assert "2 of 6 clips" in short


def test_a_second_report_does_nothing_until_a_table_changes(whole_root, tmp_path):
    root = str(tmp_path / "root")
    shutil.copytree(whole_root, root)
    first = report(Run(root=root), ReportConfig(title="again"))
    written = Path(root, "report.html").stat().st_mtime_ns
    second = report(Run(root=root), ReportConfig(title="again"))
    assert (first.num_ok, second.num_ok, second.note) == (1, 0, "nothing new")
    assert Path(root, "report.html").stat().st_mtime_ns == written
    append_block(root, "captions", [ok_row({}, caption_id=content_id("new"), text="new")], "new", LINEAGE)
    assert report(Run(root=root), ReportConfig(title="again")).num_ok == 1
    assert report(Run(root=root), ReportConfig(title="other")).num_ok == 1


def test_whether_a_page_is_new_enough_is_found_without_reading_a_table(whole_root, tmp_path):
    root = str(tmp_path / "root")
    shutil.copytree(whole_root, root)
    assert report(Run(root=root), ReportConfig(title="once")).num_ok == 1
    for path in Path(root, "tables").rglob("*.parquet"):
        path.unlink()
    assert report(Run(root=root), ReportConfig(title="once")).note == "nothing new"


def test_after_ingest_alone_the_page_says_what_is_not_there_yet(tmp_path):
    root = str(tmp_path / "root")
    write_sources(root)
    page = page_of(root)
    assert "meadow.mp4" in page
    assert "waiting" in page
    for text in ("No clips yet", "No scores yet", "Nothing selected yet", "No model has been trained yet"):
        assert text in page


def test_an_empty_root_has_a_page_too(tmp_path):
    assert "No source files yet" in page_of(str(tmp_path))


def test_a_page_stays_below_its_limit_and_says_what_was_left_out(tmp_path):
    root = str(tmp_path / "root")
    write_whole_root(root)
    for path in Path(root, "media").rglob("*.mp4"):
        write_video(str(path), np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), np.uint8), 12, crf=10)
    page = page_of(root, max_bytes=250_000)
    assert len(page.encode()) < 250_000
    assert "videos were left out to keep this page below 250 kB" in page


def test_clips_whose_files_are_gone_or_cut_short_are_counted_also_when_no_table_changed(tmp_path):
    root = str(tmp_path / "root")
    write_sources(root)
    write_clips(root)
    assert "truncated or changed" not in page_of(root)
    lost, cut = (Path(root, "media", "clips", f"{clip_id}.mp4") for clip_id in CLIP_IDS[1:3])
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:1000])
    page = page_of(root)
    assert "1 missing, 1 truncated or changed" in page
    found = embedded(page, "thumbnails")
    assert found["damage"] == {CLIP_IDS[1]: "missing", CLIP_IDS[2]: "truncated"}
    assert not found["damage"].keys() & found["thumbnails"].keys()
    shutil.rmtree(Path(root, "media"))
    assert f"{NUM_CLIPS} missing, 0 truncated or changed" in page_of(root)


@step
def count_films(run: Run, config: Config) -> StepResult:
    return StepResult(step="count_films", num_in=5, num_done=1, num_ok=3, num_skipped=1, rows={"videos": 4}, busy_s=2.5)


def test_steps_are_listed_from_their_records(tmp_path):
    count_films(Run(root=str(tmp_path)), Config())
    cells = re.search(r"<tr><td>count_films.*?</tr>", page_of(str(tmp_path)), re.DOTALL)[0]
    assert re.findall(r">([^<>\n]+)</td>", cells)[:8] == ["count_films", "5", "1", "3", "0", "1", "4 videos", "2.5"]


@step
def duplicates(run: Run, config: Config) -> StepResult:
    return StepResult(step="duplicates", num_in=6, num_done=6)


def test_a_step_that_ran_and_found_nothing_counts_0_in_the_picture(tmp_path):
    box = r'>duplicates</text><text class="count"[^>]*>([^<]*)<'
    assert re.findall(box, page_of(str(tmp_path))) == ["–"]
    duplicates(Run(root=str(tmp_path)), Config())
    assert re.findall(box, page_of(str(tmp_path), title="after the search")) == ["0"]


def test_calls_of_a_step_in_one_run_are_added_up_and_idle_runs_do_not_hide_the_last_work(tmp_path):
    for run_id, num_calls in (("1", 1), ("2", 2)):
        for _ in range(num_calls):
            count_films(Run(root=str(tmp_path), run_id=run_id), Config())
            time.sleep(0.01)  # records are named by the millisecond
    idle = StepResult(step="count_films", num_in=5, num_done=5)
    [line] = step_lines([*step_records(str(tmp_path)), ("3", idle)])
    assert (line.num_in, line.num_ok, line.rows, line.busy_s) == (10, 6, {"videos": 8}, 5.0)
    [line] = step_lines([("3", idle)])
    assert line.num_done == 5


def test_nested_settings_become_lines_and_only_long_lists_are_left_out():
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": list(range(99)), "e": [{"f": 1}], "g": []}
    assert flat_figures(nested) == [("a.b", 1), ("a.c", "1, 2"), ("g", "none")]


def test_a_training_clip_is_shown_in_the_shape_of_its_bucket():
    assert (bucket_shape("384x640x121@24"), bucket_shape("")) == ("640/384", "")


@pytest.mark.parametrize(
    ("value", "limit", "passed", "expected"), [(0.5, 0.9, True, "≤"), (2, 1, True, "≥"), (1.0, 0.9, False, "≤")]
)
def test_the_side_of_a_limit_is_told_from_the_verdict(value, limit, passed, expected):
    assert sign({"value": value, "limit": limit, "passed": passed}) == expected


@step
def select(run: Run, config: Config) -> StepResult:
    return StepResult(
        step="select", outputs={"selection": "recipe", "thresholds": '{"motion": {"min": 1.25, "max": null}}'}
    )


def test_thresholds_are_drawn_into_the_histograms_of_their_scores(tmp_path):
    root = str(tmp_path / "root")
    write_sources(root)
    write_clips(root)
    select(Run(root=root), Config())
    assert re.findall(r'class="tick limit-label"[^>]*>([^<]*)<', page_of(root)) == ["≥ 1.25"]


def test_a_budget_serves_who_asks_first_and_counts_the_rest(tmp_path):
    uri = str(tmp_path / "a.mp4")
    write_video(uri, moving_square(1), 12)
    budget = MediaBudget(len(base64.b64encode(Path(uri).read_bytes())) + 10)
    assert budget.video(uri).startswith("data:video/mp4;base64,")
    assert budget.video(uri) == ""
    assert budget.video(str(tmp_path / "none.mp4")) == ""
    assert (budget.left_out, budget.missing) == (1, 1)


def test_long_wide_clips_become_short_small_previews(tmp_path):
    uri = str(tmp_path / "a.mp4")
    frames = np.random.default_rng(0).integers(0, 255, (100, 180, 480, 3), np.uint8)
    write_video(uri, frames, 24)
    data = base64.b64decode(MediaBudget(10**7).video(uri).split(",")[1])
    frames, fps = small_frames(data, BESIDE_TEXT)
    assert (frames.shape, fps) == ((50, 96, 256, 3), 12)
    [(thumbnail, picture)] = MediaBudget(10**7).thumbnails({"a": uri, "none": str(tmp_path / "none.mp4")}).values()
    frames, fps = small_frames(base64.b64decode(thumbnail), THUMBNAIL)
    assert (frames.shape, fps) == ((24, 84, 224, 3), 8)
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (160, 60)


def coordinates(svg: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Points of the lines of a chart, (n 2), and the size of its box."""
    path = "".join(re.findall(r'class="line[^>]*d="([^"]*)"', svg))
    points = np.array([[float(x) for x in point.split()] for point in re.split("[ML]", path) if point])
    return points, tuple(map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups()))


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_keeps_its_lines_inside_and_a_higher_value_higher(log):
    svg = line_chart([Series("loss", [(0, 100.0), (50, 1.0), (100, 0.01)])], log=log)
    points, (width, height) = coordinates(svg)
    assert (points >= 0).all()
    assert (points <= (width, height)).all()
    assert (np.diff(points[:, 0]) > 0).all()
    assert (np.diff(points[:, 1]) > 0).all()  # y runs downwards


def test_a_logarithmic_chart_leaves_out_what_has_no_logarithm():
    points, _ = coordinates(line_chart([Series("loss", [(0, 1.0), (1, 0.0), (2, float("nan")), (3, 0.5)])], log=True))
    assert len(points) == 2
    assert line_chart([Series("loss", [])]) == ""
    assert "NaN" not in line_chart([Series("flat", [(0, 2.0), (1, 2.0)])])


def test_smoothing_keeps_a_constant_and_damps_a_jump():
    assert smoothed([(0, 3.0), (1, 3.0)]) == [(0, 3.0), (1, 3.0)]
    assert smoothed([(0, 0.0), (1, 1.0)])[1][1] < 0.6


def test_a_histogram_pales_what_is_dropped_and_keeps_its_limits_in_view():
    found = histogram("motion", [float(v) for v in range(10)], num_bins=10)
    svg = histogram_figure(found, [0] * 5 + [1] * 5, [Threshold(4.5, "above"), Threshold(20.0, "below")])
    assert svg.count('class="bar dropped"') == 5
    assert svg.count('class="bar"') == 5
    assert [float(x) for x in re.findall(r'class="limit" d="M([\d.]+)', svg)][1] <= 300


def test_a_constant_is_one_bar_over_its_value():
    svg = histogram_figure(histogram("white_ratio", [0.0, 0.0]))
    assert re.findall(r">([^<>]+)</text>", svg) == ["0"]
    assert svg.count("<rect") == 1


@pytest.mark.parametrize("values", [[0.0, 10.0], [0.0], [0.2, 1000.0], [0.2]])
@pytest.mark.parametrize("limits", [(0.2, 0.6), (0.2, 0.2), (0.0, 10.0), (9.7, 9.8)])
def test_labels_of_limits_stay_in_the_figure_and_cover_neither_each_other_nor_another_line(values, limits):
    low, high = limits
    svg = histogram_figure(histogram("x", values), (), [Threshold(low, "above"), Threshold(high, "below")])
    labels = re.findall(r'limit-label" x="([\d.]+)" y="(\d+)" textLength="([\d.]+)"', svg)
    spans = [(float(x), float(x) + float(length), int(y)) for x, y, length in labels]
    assert all(begin >= 0 and end <= 300 for begin, end, _ in spans)
    (begin, end, row), (other_begin, other_end, other_row) = spans
    assert row != other_row or end <= other_begin or other_end <= begin
    for line, own in zip(re.findall(r'class="limit" d="M([\d.]+) (\d+)V', svg), spans, strict=True):
        over = [one for one in spans if one is not own and one[0] <= float(line[0]) <= one[1]]
        assert all(int(line[1]) >= y - 8 for _, _, y in over)


def test_a_generated_picture_is_shown_like_a_clip(tmp_path):
    from pyramid_model.video.video import write_image
    from tasks.report.media import MediaBudget
    from tasks.report.previews import frames_of

    uri = str(tmp_path / "dog.png")
    write_image(uri, np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8))
    assert [frame.shape for frame in frames_of(uri, 4)] == [(72, 128, 3)]
    data = base64.b64decode(MediaBudget(10**7).video(uri).removeprefix("data:video/mp4;base64,"))
    assert data[4:8] == b"ftyp"
    assert frames_of(str(tmp_path / "gone.png"), 4) == []


def test_the_page_beside_a_run_says_what_was_lost_where_and_shows_kept_clips(whole_root):
    from tasks.report.previews import curation_page

    page = curation_page(whole_root)
    for line in ("# 5 of 6 clips kept", "| clips | 6 |", "| after motion | 5 | -1 |", "| motion | 1 | 1 | 1 |"):
        assert line in page
    assert page.count("data:image/svg+xml;base64,") == 3  # length, motion, sharpness
    assert "data:image/jpeg;base64," in page
