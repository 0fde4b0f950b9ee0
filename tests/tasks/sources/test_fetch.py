"""Files of web hosts come whole or not at all, politely, and once. About 10 s."""

import contextlib
import hashlib
import http.server
import re
import threading
import time
from collections import Counter, defaultdict
from email.utils import formatdate

import pytest

from tasks.cutting.clips import _sources
from tasks.inspecting.leftovers import vacuum
from tasks.inspecting.verify import verify
from tasks.running.run import RayConfig, Run
from tasks.sources.fetch import FetchConfig, FetchError, Sink, fetch, retry_after_s
from tasks.sources.ingest import FileHasher, IngestConfig, _rows, hash_file, ingest
from tasks.sources.listing import source_files
from tasks.tables import storage
from tasks.tables.delta import read_table
from tasks.tables.host_budget import HostBudget

BODY = bytes(range(256)) * 1000
TAG, OTHER, WEAK = '"first"', '"second"', 'W/"first"'
LOOPBACK = ("127.0.0.0/8",)  # where the hosts of these tests are
QUICK = FetchConfig(requests_per_s=1000, backoff_s=0.01, tries=3, timeout_s=0.5, max_wait_s=2, allow_hosts=LOOPBACK)


class Host(http.server.BaseHTTPRequestHandler):
    """A web host with a path for every kind of trouble; `troubles` says how often each path still fails.

    Files below /tagged/ have the ETag `tag` and come in parts, of which the first breaks off while there is trouble.
    """

    asked: Counter[str]
    troubles: dict[str, int]
    times: list[float]
    tag: str
    parts: list[tuple[str | None, str | None, int]]  # Range and If-Range that were asked for, bytes that were sent
    next_tag: str  # what the file has after the first answer

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked[path] += 1
        self.times.append(time.monotonic())
        name, trouble = path.rpartition("/")[2], self.troubles[path] > 0
        self.troubles[path] -= 1
        if path.startswith("/tagged/"):
            return self.tagged(trouble)
        if name.startswith("gone") or not name.endswith(".mp4"):
            return self.answer(404)
        if name.startswith("secret"):
            return self.answer(403)
        if name.startswith("moved"):
            return self.answer(302, Location="/plain.mp4")
        if name.startswith("loop"):
            return self.answer(302, Location=path)
        if name.startswith("busy") and trouble:
            return self.answer(429, **{"Retry-After": "1"})
        if name.startswith("closed"):
            return self.answer(503, **{"Retry-After": "3600"})
        if name.startswith("broken") and trouble:
            return self.answer(500)
        body = BODY[: len(BODY) // 2] if name.startswith("cut") and trouble else BODY
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if name.startswith("slow"):
            for start in range(0, len(body), 50_000):
                self.wfile.write(body[start : start + 50_000])
                time.sleep(0.1)
        elif name.startswith("drip"):
            with contextlib.suppress(ConnectionError):
                for _ in range(60):
                    self.wfile.write(body[:10])
                    time.sleep(0.1)
        elif name.startswith("stuck"):
            self.wfile.write(body[:10])
            time.sleep(1.5)
        else:
            self.wfile.write(body)

    def tagged(self, breaks_off: bool) -> None:
        asked, validator = self.headers["Range"], self.headers["If-Range"]
        body = BODY if Host.tag in (TAG, WEAK) else BODY[::-1]
        start = int(asked[len("bytes=") : -1]) if asked and validator == Host.tag else 0
        lies = self.path.endswith("lies.mp4") and start
        self.send_response(206 if start else 200)
        self.send_header("ETag", Host.tag)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {0 if lies else start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        sent = body[start : start + 100_000] if breaks_off else body[start:]
        self.wfile.write(sent)
        Host.parts.append((asked, validator, len(sent)))
        Host.tag = Host.next_tag
        if breaks_off:
            time.sleep(0.3)  # what was sent has arrived before the connection is lost

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def host():
    """URL of a web host of this machine."""
    Host.asked, Host.troubles, Host.times = Counter(), defaultdict(int), []
    Host.tag, Host.next_tag, Host.parts = TAG, TAG, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetched(url: str, config: FetchConfig = QUICK) -> Sink:
    sink = Sink()
    fetch(url, sink, config, HostBudget(config.requests_per_s, config.bytes_per_s))
    return sink


@pytest.mark.parametrize("name", ["plain.mp4", "slow.mp4", "moved.mp4", "plain.mp4?token=1"])
def test_what_a_host_sends_comes_whole_also_slowly_and_from_where_it_moved_to(host, name, tmp_path):
    (tmp_path / "body").write_bytes(BODY)
    sink = fetched(f"{host}/{name}")
    assert (sink.size_bytes, sink.video_id) == (len(BODY), hash_file(str(tmp_path / "body"))[0])


@pytest.mark.parametrize("name", ["broken.mp4", "cut.mp4", "busy.mp4"])
def test_trouble_that_passes_is_waited_for(host, name):
    Host.troubles[f"/{name}"] = 2
    started = time.monotonic()
    assert fetched(f"{host}/{name}").size_bytes == len(BODY)
    assert Host.asked[f"/{name}"] == 3
    assert name != "busy.mp4" or time.monotonic() - started >= 2  # it had asked for a second, twice


def hashed(body: bytes) -> str:
    sink = Sink()
    sink.write(body)
    return sink.video_id


def test_a_download_that_breaks_off_goes_on_where_it_was(host, tmp_path):
    Host.troubles["/tagged/a.mp4"] = 2
    (tmp_path / "copy").touch()
    sink = Sink(str(tmp_path / "copy"), sums=("sha256",))
    fetch(f"{host}/tagged/a.mp4", sink, QUICK, HostBudget(1000, 1e9))
    assert Host.parts == [
        (None, None, 100_000),
        ("bytes=100000-", TAG, 100_000),
        ("bytes=200000-", TAG, len(BODY) - 200_000),
    ]
    assert (sink.video_id, sink.sum("sha256")) == (hashed(BODY), hashlib.sha256(BODY).hexdigest())
    assert (tmp_path / "copy").read_bytes() == BODY


@pytest.mark.parametrize(("tag", "next_tag"), [(TAG, OTHER), (WEAK, WEAK), (WEAK, OTHER), ("", "")])
def test_a_file_that_has_changed_or_cannot_be_told_from_another_begins_anew(host, tmp_path, tag, next_tag):
    Host.tag, Host.next_tag, Host.troubles["/tagged/a.mp4"] = tag, next_tag, 1
    (tmp_path / "copy").touch()
    sink = Sink(str(tmp_path / "copy"))
    fetch(f"{host}/tagged/a.mp4", sink, QUICK, HostBudget(1000, 1e9))
    body = BODY if next_tag == WEAK else BODY[::-1]
    assert (sink.video_id, (tmp_path / "copy").read_bytes()) == (hashed(body), body)
    assert [sent for _, _, sent in Host.parts] == [100_000, len(BODY)]
    assert Host.parts[1][1] == (TAG if tag == TAG else None)


def test_a_part_that_is_not_the_one_that_was_asked_for_is_not_appended(host):
    Host.troubles["/tagged/lies.mp4"] = 1
    assert fetched(f"{host}/tagged/lies.mp4").video_id == hashed(BODY)
    assert [sent for _, _, sent in Host.parts] == [100_000, len(BODY) - 100_000, len(BODY)]


def test_one_request_tells_what_a_source_is(host, tmp_path):
    source = source_files(f"{host}/slow.mp4", str(tmp_path), web=QUICK)
    assert ([file.uri for file in source.files], source.form) == ([f"{host}/slow.mp4"], "one file")
    assert Host.asked == {"/slow.mp4": 1}
    with pytest.raises(ValueError, match="does not exist"):
        source_files(f"{host}/gone.mp4", str(tmp_path), web=QUICK)
    with pytest.raises(ValueError, match=r"cannot be reached: .* answers 403"):
        source_files(f"{host}/secret.mp4", str(tmp_path), web=QUICK)
    Host.troubles["/busy.mp4"] = 1
    assert source_files(f"{host}/busy.mp4", str(tmp_path), web=QUICK).form == "one file"


def test_no_request_comes_before_its_turn_whoever_makes_it(host, tmp_path):
    config, began = FetchConfig(allow_hosts=LOOPBACK, requests_per_s=5, backoff_s=0.01), time.monotonic()
    source_files(f"{host}/plain.mp4", str(tmp_path), web=config)
    assert not storage.exists(f"{host}/source.yaml", LOOPBACK)
    fetch(f"{host}/moved.mp4", Sink(), config, config.process_budget())  # two requests
    turns = [arrived - began for arrived in Host.times]
    assert len(turns) == 4
    assert all(turn >= number / 5 - 0.01 for number, turn in enumerate(turns))


@pytest.mark.parametrize(
    ("name", "kind", "reason", "tries"),
    [
        ("gone.mp4", "missing", "gone.mp4 answers 404", 1),
        ("secret.mp4", "refused", "answers 403", 1),
        ("loop.mp4", "unreadable", "TooManyRedirects", 10),
        ("closed.mp4", "busy", "answers 503 and asks to wait 3600 s, longer than ingest.fetch.max_wait_s", 1),
        ("broken.mp4", "unreachable", r"answers 500 \(3 tries\). Later: --retry-failed", 3),
        ("cut.mp4", "unreachable", "ClientPayloadError", 3),
        ("stuck.mp4", "unreachable", "Timeout", 3),
    ],
)
def test_trouble_that_stays_is_told_by_kind(host, name, kind, reason, tries):
    Host.troubles[f"/{name}"] = 99
    with pytest.raises(FetchError, match=reason) as told:
        fetched(f"{host}/{name}")
    assert (told.value.kind, Host.asked[f"/{name}"]) == (kind, tries)


def test_a_file_without_end_is_given_up(host):
    with pytest.raises(FetchError, match=r"more than 1000 bytes arrived \(ingest\.fetch\.max_bytes\)"):
        fetched(f"{host}/slow.mp4", FetchConfig(allow_hosts=LOOPBACK, max_bytes=1000))


def test_a_host_that_never_ends_nor_falls_silent_costs_its_own_file_only(host, tmp_path):
    """Each try would be given up after half a second of silence, which never comes."""
    names = ("drip.mp4", "broken.mp4", "plain.mp4")
    Host.troubles["/broken.mp4"] = 99
    (tmp_path / "list.txt").write_text("".join(f"{host}/{name}\n" for name in names))
    source = source_files(str(tmp_path / "list.txt"), "/elsewhere")
    items = [row | {"attempt": 1} for row in _rows(source.folder, source.files, {})]
    patient = QUICK.model_copy(update={"tries": 20, "backoff_s": 1})
    worker = FileHasher(IngestConfig(fetch=patient), str(tmp_path / "media"), limit_s=1.5)
    drip, broken, plain = worker(items).rows["sources"]
    assert (drip["error_type"], broken["error_type"], plain["status"]) == ("timeout", "timeout", "ok")
    assert re.fullmatch(
        rf"[1-9]\d+ bytes of {host}/drip.mp4 arrived in 2 s, and the file is not complete "
        r"\(ray.no_progress_timeout_s\)\. Later: --retry-failed",
        drip["error"],
    )
    assert [copy.read_bytes() for copy in (tmp_path / "media").iterdir()] == [BODY]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.mp4", "http://no.such.host.invalid/a.mp4"])
def test_a_host_that_is_not_there_is_unreachable(url):
    with pytest.raises(FetchError) as told:
        fetched(url)
    assert told.value.kind == "unreachable"


def test_a_host_is_asked_no_more_often_than_allowed(host):
    config = FetchConfig(allow_hosts=LOOPBACK, requests_per_s=20)
    budget = HostBudget(config.requests_per_s, config.bytes_per_s)
    threads = [
        threading.Thread(target=fetch, args=(f"{host}/plain.mp4", Sink(), config, budget)) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Host.times) == 8
    assert max(Host.times) - min(Host.times) >= 7 / 20 - 0.02  # the last of eight comes seven turns after the first


def test_the_two_forms_of_retry_after_are_understood():
    assert retry_after_s("120") == 120
    assert retry_after_s(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=3)
    assert retry_after_s("soon") == retry_after_s("") == 0


@pytest.mark.ray
def test_a_list_of_urls_is_fetched_once_and_kept(ray_local, host, tmp_path):
    (tmp_path / "list.csv").write_text(
        f"uri,text,md5\n{host}/plain.mp4,A square.,\n{host}/moved.mp4,A copy.,\n{host}/gone.mp4,Gone.,\n"
        f"{host}/plain.mp4?2,Wrong.,{'ab' * 16}\n"
    )
    (tmp_path / "source.yaml").write_text("name: squares\nlicense: CC0-1.0\n")
    run = Run(root=str(tmp_path / "root"), ray=RayConfig(num_cpus=2))
    config = IngestConfig(source=str(tmp_path / "list.csv"), fetch=QUICK)
    first = ingest(run, config)
    assert (first.num_ok, first.errors) == (2, {"missing": 1, "checksum": 1})
    assert first.note.startswith("read as a list (CSV); 1 of the files have the same bytes as another")
    rows = {row["uri"]: row for row in read_table(run.root, "sources").to_pylist()}
    row = rows[f"{host}/plain.mp4"]
    assert (row["size_bytes"], row["source"], row["license"]) == (len(BODY), "squares", "CC0-1.0")
    assert storage.read_bytes(row["copy"]) == BODY
    assert [file["uri"] for file in _sources(run)[row["video_id"]]].count(row["copy"]) == 2

    asked = Host.asked.total()
    assert ingest(run, config).num_new == 0
    assert Host.asked.total() == asked
    assert vacuum(run.root, older_than_h=0) == []
    assert not [finding for finding in verify(run.root, "sources") if finding.level == "fail"]
