"""Files of web hosts come whole or not at all, politely, and once. About 10 s."""

import contextlib
import http.server
import re
import threading
import time
from collections import Counter, defaultdict
from email.utils import formatdate

import pytest

from tasks import storage
from tasks.clips import _sources
from tasks.fetch import FetchConfig, FetchError, HostBudget, Sink, fetch, retry_after_s
from tasks.ingest import FileHasher, IngestConfig, _rows, hash_file, ingest
from tasks.leftovers import vacuum
from tasks.listing import source_files
from tasks.step import RayConfig, Run
from tasks.tables import read_table
from tasks.verify import verify

BODY = bytes(range(256)) * 1000
QUICK = FetchConfig(requests_per_s=1000, backoff_s=0.01, tries=3, timeout_s=0.5, max_wait_s=2)


class Host(http.server.BaseHTTPRequestHandler):
    """A web host with a path for every kind of trouble; `troubles` says how often each path still fails."""

    asked: Counter[str]
    troubles: dict[str, int]
    times: list[float]

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
    with pytest.raises(FetchError, match=r"more than 1000 bytes came \(ingest\.fetch\.max_bytes\)"):
        fetched(f"{host}/slow.mp4", FetchConfig(max_bytes=1000))


def test_a_host_that_never_ends_nor_falls_silent_costs_its_own_file_only(host, tmp_path):
    """Each try would be given up after half a second of silence, which never comes."""
    names = ("drip.mp4", "broken.mp4", "plain.mp4")
    Host.troubles["/broken.mp4"] = 99
    (tmp_path / "list.txt").write_text("".join(f"{host}/{name}\n" for name in names))
    source = source_files(str(tmp_path / "list.txt"), "/elsewhere")
    items = [row | {"attempt": 1} for row in _rows(source.folder, source.files, {})]
    patient = QUICK.model_copy(update={"tries": 20, "backoff_s": 1})
    worker = FileHasher(IngestConfig(fetch=patient), str(tmp_path / "media"), limit_s=1.5)
    drip, broken, plain = worker(items)["sources"]
    assert (drip["error_type"], broken["error_type"], plain["status"]) == ("timeout", "timeout", "ok")
    assert re.fullmatch(
        rf"[1-9]\d+ bytes of {host}/drip.mp4 came in 2 s, and it did not end \(ray.no_progress_timeout_s\)\. "
        r"Later: --retry-failed",
        drip["error"],
    )
    assert [copy.read_bytes() for copy in (tmp_path / "media").iterdir()] == [BODY]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.mp4", "http://no.such.host.invalid/a.mp4"])
def test_a_host_that_is_not_there_is_unreachable(url):
    with pytest.raises(FetchError) as told:
        fetched(url)
    assert told.value.kind == "unreachable"


def test_a_host_is_asked_no_more_often_than_allowed(host):
    config = FetchConfig(requests_per_s=20)
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


def test_bytes_and_pauses_are_booked_for_each_host_alone():
    budget = HostBudget(requests_per_s=10, bytes_per_s=1000)
    assert budget.reserve("a", num_requests=1) == 0
    assert budget.reserve("a", num_bytes=500) == pytest.approx(0.1, abs=0.05)
    assert budget.reserve("a", num_requests=1) == pytest.approx(0.6, abs=0.05)
    assert budget.reserve("b", num_requests=1) == 0
    budget.hold("b", 5)
    assert budget.reserve("b", num_requests=1) == pytest.approx(5, abs=0.1)


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
    assert first.note.startswith("read as a list (CSV); 1 of the files have the bytes of another")
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
