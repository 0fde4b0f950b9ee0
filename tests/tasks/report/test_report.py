"""The report: one page that says what is in the tables, and what is not there yet. About 10 s."""

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from pyramid_model.video.video import write_video
from tasks.report.media import BESIDE_TEXT, small_frames
from tasks.report.report import ReportConfig, report
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, ok_row

LINEAGE = Lineage("run", "step", "1", "recipe", "code")


def test_the_page_needs_nothing_but_itself(whole_root, page_of):
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


def test_every_element_of_the_page_is_closed(whole_root, tmp_path, page_of):
    for root in (whole_root, str(tmp_path)):
        balance = Balance(page_of(root))
        assert (balance.wrong, balance.open) == ([], [])


def test_the_page_shows_what_is_in_the_tables(whole_root, page_of):
    page = page_of(whole_root, title="A run & more")
    for text in (
        *("A run &amp; more", "A rabbit &lt;yawns&gt; &amp; stretches", "Something never filmed", "CC-BY-3.0"),
        *("Films by nobody in particular", "ends after 3 of 9 s", "5 of 6 clips kept", "24.5 dB, linear codec 23.9"),
        *("val_loss_to_untrained", "did not pass", "histogram of sharpness", "no training clip has this prompt"),
        *("cut shorter", "23.2 dB", "untrained model"),
    ):
        assert text.replace(" dB, linear codec 23.9", " dB") in page
    assert "linear codec 23.9 dB" in page
    assert "<yawns>" not in page


def test_videos_in_the_page_are_small_and_play(whole_root, page_of, embedded):
    page = page_of(whole_root)
    videos = re.findall(r'<video src="data:video/mp4;base64,([^"]+)"', page)
    # two generated ones and a training clip, two samples with it, one reconstruction
    assert len(videos) == 2 + 1 + 4 + 1
    thumbnails = embedded(page, "thumbnails")["thumbnails"]
    assert set(thumbnails) == {content_id("clip", number) for number in range(6)}
    for video in [*videos, *thumbnails.values()]:
        frames, fps = small_frames(base64.b64decode(video), BESIDE_TEXT)
        assert fps == 12
        assert frames.shape[0] == 24
        assert max(frames.shape[1:3]) <= 320


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


def test_after_ingest_alone_the_page_says_what_is_not_there_yet(tmp_path, page_of, write_root):
    root = str(tmp_path / "root")
    write_root(root, "sources")
    page = page_of(root)
    assert "meadow.mp4" in page
    assert "waiting" in page
    for text in ("No clips yet", "No scores yet", "Nothing selected yet", "No model has been trained yet"):
        assert text in page


def test_an_empty_root_has_a_page_too(tmp_path, page_of):
    assert "No source files yet" in page_of(str(tmp_path))


def test_a_page_stays_below_its_limit_and_says_what_was_left_out(tmp_path, page_of, write_root):
    root = str(tmp_path / "root")
    write_root(root)
    for path in Path(root, "media").rglob("*.mp4"):
        write_video(str(path), np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), np.uint8), 12, crf=10)
    page = page_of(root, max_bytes=250_000)
    assert len(page.encode()) < 250_000
    assert "videos were left out to keep this page below 250 kB" in page
