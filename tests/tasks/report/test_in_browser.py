"""The report as a browser shows it, a headless Chromium over its DevTools protocol. About 10 s; skipped without one."""

import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pyramid_model.video.video import write_video
from tasks.report.report import ReportConfig, report
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, bad_row, ok_row

LINEAGE = Lineage("run", "step", "1", "recipe", "code")
NUM_CLIPS = 60  # more than one page of the list
LONG = "a_long_file_name_without_any_space_" * 3 + ".mp4"

# Run in the page; its result comes back as JSON.
LAYOUT = """(() => {
  const wider = [...document.querySelectorAll("main *")].filter(one => !one.closest(".scroll, details:not([open])")
    && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
  return { overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    wider: wider.map(one => one.tagName + "." + one.className),
    background: getComputedStyle(document.body).backgroundColor };
})()"""
SEARCH = """(() => {
  const cards = () => document.querySelectorAll("#clip-grid > article").length;
  const told = () => document.querySelector("#num-found").textContent;
  const form = document.querySelector("#search");
  const ask = (name, value) => {
    form.elements[name].value = value;
    form.dispatchEvent(new Event("input"));
    return told();
  };
  const more = document.querySelector("#more");
  const found = { all: told(), cards: cards(), more: more.checkVisibility() };
  more.click();
  found.cards_of_two_pages = cards();
  found.more_at_the_end = more.checkVisibility();
  found.kept = ask("verdict", "kept");
  found.words = ask("words", "FOUR");
  ask("words", "");
  ask("verdict", "");
  document.querySelector("[data-reason=motion_low]").click();
  found.linked = told();
  found.focused = document.activeElement.name;
  ask("reason", "");
  ask("order", "down");
  ask("sort", "motion");
  found.highest = document.querySelector("#clip-grid .limited").textContent;
  return found;
})()"""
VIDEO = """(async () => {
  const video = document.querySelector("#selection video");
  const picture = new Image();
  picture.src = video.poster;
  await picture.decode();
  const before = [picture.naturalWidth, picture.naturalHeight];
  video.scrollIntoView();
  for (let turn = 0; turn < 200 && video.readyState < 2; turn++) await new Promise(done => setTimeout(done, 25));
  const playing = !video.paused, inside = [video.videoWidth, video.videoHeight];
  document.querySelector("#pause").click();
  const found = { before, inside, playing, paused_by_button: video.paused };
  scrollTo(0, 0);
  for (let turn = 0; turn < 200 && video.hasAttribute("src"); turn++) await new Promise(done => setTimeout(done, 25));
  return { ...found, let_go: !video.hasAttribute("src") };
})()"""


class Browser:
    """Chromium behind two pipes: commands go in and events come out as JSON, each ended by a zero byte."""

    def __init__(self, command: str, folder: Path):
        to_browser, self.commands = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in os.pipe())
        self.events, from_browser = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in os.pipe())
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [command, *options, f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=lambda: (os.dup2(to_browser, 3), os.dup2(from_browser, 4)),
            pass_fds=(3, 4),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.unread, self.number, self.problems, self.session = b"", 0, [], ""
        [target] = [info for info in self.ask("Target.getTargets")["targetInfos"] if info["type"] == "page"]
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params) -> dict:
        """The answer to a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (event := self.next_event()).get("id") != self.number:
            pass
        assert "error" not in event, event
        return event["result"]

    def next_event(self) -> dict:
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.events], [], [], 60)
            read = os.read(self.events, 1 << 20) if ready else b""
            assert read, "Chromium has ended, or says nothing for a minute"
            self.unread += read
        text, _, self.unread = self.unread.partition(b"\0")
        event = json.loads(text)
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.problems.append(event["params"])
        return event

    def show(self, file: Path, width: int, **media: str) -> None:
        """Load a page in a window of this width, px, with these preferences of its reader."""
        self.problems.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Page.navigate", url=file.as_uri())
        while self.next_event().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> dict:
        """What a script in the page returns."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    command = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if command is None:
        pytest.skip("no Chromium on this machine")
    chromium = Browser(command, tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.process.kill()
    chromium.process.wait()
    os.close(chromium.commands)
    os.close(chromium.events)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report of many clips, few of which have a file."""
    root = str(tmp_path_factory.mktemp("browser") / "root")
    clip_ids = [content_id("clip", number) for number in range(NUM_CLIPS)]
    uri = f"{root}/media/clip.mp4"
    write_video(uri, np.random.default_rng(0).integers(0, 255, (8, 36, 64, 3), np.uint8), 8)
    video = {"video_id": content_id("v"), "path": LONG, "source": "films"}
    card = Path(root).parent / "source.yaml"
    card.write_text(f"name: films\nattribution: by nobody (https://example.org/{LONG})\n")
    append(root, "sources", [ok_row({}, source_id=content_id("s"), card=str(card), **video)])
    append(root, "videos", [ok_row({}, clip_ids=clip_ids, num_clips=NUM_CLIPS, **video)])
    lost = (
        "truncated",
        "moov atom of /a/very/long/path/without/any/space/that/a/browser/could/break/it/at.mp4 is gone",
    )
    append(root, "videos", [bad_row({}, lost, video_id=content_id("w"))])
    facts = {"video_id": content_id("v"), "num_frames": 8, "width": 64, "height": 36}
    numbers = dict(enumerate(clip_ids))
    clips = [
        ok_row(
            {},
            clip_id=clip_id,
            uri=uri if n < 3 else f"{root}/none.mp4",
            start_s=float(n),
            end_s=n + 0.5,
            shot=n,
            **facts,
        )
        for n, clip_id in numbers.items()
    ]
    append(root, "clips", clips)
    scorers = [f"scorer_{number}" for number in range(12)] + ["a_scorer_" + "with_a_long_name_" * 4, "motion"]
    scores = [
        ok_row({}, score_id=content_id(clip_id, scorer), clip_id=clip_id, scorer=scorer, value=float(n))
        for n, clip_id in numbers.items()
        for scorer in scorers
    ]
    append(root, "scores", scores)
    verdicts = [
        ok_row(
            {},
            selection_id=content_id(clip_id),
            clip_id=clip_id,
            keep=n > 10,
            drop_reasons=[] if n > 10 else ["motion_low", "rule_" * 60],
            bucket="32x64x8@8",
            split="train" if n % 5 else "val",
        )
        for n, clip_id in numbers.items()
    ]
    append(root, "selections", verdicts)
    append(
        root, "captions", [ok_row({}, caption_id=content_id("c"), clip_id=clip_ids[44], text="Clip forty-four, Four")]
    )
    return Path(report(Run(root=root), ReportConfig()).uri)


def append(root: str, table: str, rows: list[dict]) -> None:
    append_block(root, table, rows, content_id(table, rows[0]["status"]), LINEAGE)


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_on_the_page_is_wider_than_its_window(browser, page, width):
    browser.show(page, width)
    layout = browser.run(LAYOUT)
    assert (browser.problems, layout["overflow"], layout["wider"]) == ([], 0, [])


def test_the_search_finds_clips_by_verdict_word_and_rule_and_sorts_them(browser, page):
    browser.show(page, 1280)
    facts = browser.run(SEARCH)
    assert (facts["all"], facts["cards"], facts["cards_of_two_pages"]) == ("60 of 60 clips, 48 shown", 48, 60)
    assert (facts["more"], facts["more_at_the_end"]) == (True, False)
    assert (facts["kept"], facts["words"]) == ("49 of 60 clips, 48 shown", "1 of 60 clips")
    assert (facts["linked"], facts["focused"]) == ("11 of 60 clips", "reason")
    assert facts["highest"] == "motion 59"
    assert browser.problems == []


@pytest.mark.parametrize(("motion", "plays"), [("no-preference", True), ("reduce", False)])
def test_previews_play_only_in_view_and_for_readers_who_want_motion(browser, page, motion, plays):
    browser.show(page, 1280, prefers_reduced_motion=motion)
    facts = browser.run(VIDEO)
    assert (facts["before"], facts["inside"]) == ([64, 36], [64, 36])  # a still until it plays
    assert (facts["playing"], facts["let_go"]) == (plays, True)
    assert facts["paused_by_button"] == plays  # the button starts what the preference had stopped
    assert browser.problems == []


def test_the_page_is_dark_where_the_reader_prefers_that(browser, page):
    backgrounds = []
    for scheme in ("light", "dark"):
        browser.show(page, 800, prefers_color_scheme=scheme)
        backgrounds.append(browser.run(LAYOUT)["background"])
    assert backgrounds == ["rgb(247, 247, 245)", "rgb(18, 20, 22)"]
