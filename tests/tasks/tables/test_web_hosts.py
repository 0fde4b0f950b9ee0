"""Lists from elsewhere reach public addresses only. About 3 s."""

import http.server
import ipaddress
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest

from tasks.sources.card import SourceCard, read_web_card
from tasks.sources.fetch import FetchConfig, FetchError, Sink, fetch, look
from tasks.sources.ingest import FileHasher, IngestConfig, _rows
from tasks.sources.listing import source_files
from tasks.tables import storage
from tasks.tables.host_budget import HostBudget
from tasks.tables.web_hosts import addresses_now, check_address, check_allow_host, is_allowed, is_public

FAST = FetchConfig(requests_per_s=1000, backoff_s=0.01, tries=1, timeout_s=2)
BUDGET = HostBudget(1000, 1e9)
INNER = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "198.18.0.1",
    "192.0.0.192",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
]


class Server:
    """A web server on a port of loopback; `asked` has the paths of its requests."""

    def __init__(self, answers):
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                status, headers, body = answers.get(self.path.partition("?")[0], (404, {}, b""))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def serve():
    servers = []

    def start(answers):
        servers.append(Server(answers))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.parametrize("address", INNER)
def test_inner_addresses_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("entry", "port", "allowed"),
    [
        ("10.0.0.0/8", 80, True),
        ("10.1.2.3", 80, True),
        ("10.1.2.3:80", 80, True),
        ("10.1.2.3:81", 80, False),
        ("10.1.2.4", 80, False),
        ("::/0", 80, False),
    ],
)
def test_hosts_are_allowed_by_address_network_and_port(entry, port, allowed):
    assert is_allowed(ipaddress.ip_address("10.1.2.3"), port, (entry,)) is allowed


def test_an_allowed_name_stands_for_its_addresses():
    assert is_allowed(ipaddress.ip_address("127.0.0.1"), 80, ("localhost",))
    assert is_allowed(ipaddress.ip_address("::1"), 80, ("[::1]:80",))
    check_address("x", "127.0.0.1", 80, ("localhost:80",))


@pytest.mark.parametrize("entry", ["", "http://nas/", "user@nas", "10.0.0.0/99", "*.corp"])
def test_an_entry_of_the_allow_list_that_can_allow_nothing_is_refused(entry):
    with pytest.raises(ValueError, match="is not a host"):
        check_allow_host(entry)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "user:word@127.0.0.1",
        "127。0。0。1",
        "①②⑦.0.0.1",
    ],
)
def test_loopback_is_refused_in_any_spelling(serve, host):
    server = serve({"/a": (200, {}, b"x")})
    with pytest.raises(FetchError) as refused:
        fetch(f"http://{host}:{server.port}/a", Sink(), FAST, BUDGET)
    assert refused.value.kind in ("inner_address", "unreachable", "unreadable")  # not every spelling is an address
    assert server.asked == []
    with pytest.raises(FetchError):
        look(f"HTTP://{host}:{server.port}/a", 10, FAST, BUDGET)
    assert server.asked == []


def test_the_error_names_the_setting():
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 is not public: .* ingest\.fetch\.allow_hosts") as refused:
        fetch("http://127.0.0.1:9/a", Sink(), FAST, BUDGET)
    assert refused.value.kind == "inner_address"


def test_a_name_is_refused_by_the_address_it_has_when_the_connection_is_made(serve, monkeypatch):
    """The answer of DNS is public the first time and inner the second time."""
    server, calls = serve({"/a": (200, {}, b"x")}), []
    real = socket.getaddrinfo

    def rebound(host, port, *args, **options):
        if host != "changes.example":
            return real(host, port, *args, **options)
        calls.append(host)
        return real("8.8.8.8" if len(calls) == 1 else "127.0.0.1", port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    url = f"http://changes.example:{server.port}/a"
    assert addresses_now(url) == ()  # typed by the user while it was public
    with pytest.raises(FetchError) as refused:
        fetch(url, Sink(), FAST.trusting("http://8.8.8.8/"), BUDGET)
    assert (refused.value.kind, server.asked) == ("inner_address", [])


def test_a_list_reaches_no_inner_server_and_no_redirect_leads_there(serve, tmp_path):
    inner = serve({})
    here = f"http://127.0.0.1:{inner.port}"
    outer = serve({"/moved": (302, {"Location": f"{here}/by-redirect"}, b""), "/a.mp4": (200, {}, b"x")})
    own = f"http://127.0.0.1:{outer.port}"
    names = [f"{here}/inner", f"http://localhost:{inner.port}/inner", f"{own}/moved", "a.mp4"]
    names += [f"simplecache::{here}/x.mp4", f"zip://x.mp4::{here}/x.zip", f"webhdfs://127.0.0.1:{inner.port}/x.mp4"]
    listing = "\n".join(names).encode()
    outer_list = serve({"/list.txt": (200, {}, listing)})  # a third server: the entry a.mp4 is on it, and missing
    source = f"http://127.0.0.1:{outer_list.port}/list.txt"
    web = FAST.trusting(source, f"{own}/")
    files = source_files(source, str(tmp_path), web=web)
    items = [row | {"attempt": 1} for row in _rows(files.folder, files.files, {}, web.allow_hosts)]
    rows = FileHasher(IngestConfig(fetch=web), str(tmp_path / "media"))(items).rows["sources"]
    kinds = [row["error_type"] for row in rows]
    assert kinds == ["inner_address"] * 3 + ["missing"] + ["bad_entry", "bad_entry", "bad_uri"]
    assert inner.asked == []


def test_a_source_that_the_user_typed_may_be_read_and_named_by_its_list(serve, tmp_path):
    server = serve({})
    server_url = f"http://127.0.0.1:{server.port}"
    assert addresses_now(server_url) == (f"[127.0.0.1]:{server.port}",)
    assert FAST.trusting(server_url).allow_hosts == (f"[127.0.0.1]:{server.port}",)
    with pytest.raises(FetchError, match="answers 404"):
        fetch(f"{server_url}/a", Sink(), FAST.trusting(server_url), BUDGET)


def test_files_opened_with_fsspec_are_checked_too(serve):
    server = serve({"/a.json": (200, {}, json.dumps({}).encode())})
    url = f"http://127.0.0.1:{server.port}/a.json"
    for uri in (url, f"simplecache::{url}"):
        with pytest.raises(Exception, match="is not public"):
            storage.exists(uri)
    assert server.asked == []


def test_a_host_that_one_call_may_ask_is_refused_to_the_next(serve):
    server = serve({"/a.json": (200, {}, b"{}")})
    url = f"http://127.0.0.1:{server.port}/a.json"
    assert storage.exists(url, addresses_now(url))
    assert storage.read_bytes(url, hosts=addresses_now(url)) == b"{}"
    with storage.reading(url, hosts=addresses_now(url)) as path, open(path) as file:
        assert file.read() == "{}"
    num_asked = len(server.asked)
    with pytest.raises(Exception, match="is not public"):
        storage.read_bytes(url)
    assert len(server.asked) == num_asked


PAGES = [
    b"<!doctype html><title>Nothing: here</title>",
    b'{"AccessKeyId": "TOPSECRET"}',
    b'{"url": "/source.yaml", "status": 404, "message": "no"}',
    b"[1, 2]",
    b"nothing here",
    b"a: b: c\n\t- x",
    bytes(range(256)),
    b"",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_a_host_gives_for_every_name_is_not_taken_for_a_card(serve, tmp_path, page):
    server = serve({"/source.yaml": (200, {}, page), "/list.txt": (200, {}, b"a.mp4"), "/a.mp4": (200, {}, b"x")})
    source = f"http://127.0.0.1:{server.port}/list.txt"
    files = source_files(source, str(tmp_path), web=FAST)
    (row,) = _rows(files.folder, files.files, {}, addresses_now(source))
    assert (row["card"], row["error_type"]) == ("", "")


def test_a_card_of_a_web_host_counts_and_a_wrong_one_fails_its_files_only(serve, tmp_path):
    card, wrong = b"name: films\nlicense: CC0-1.0\n", b"name: films\nlicence: CC0-1.0\nurl: x"
    server = serve({"/source.yaml": (200, {}, card), "/a/source.yaml": (200, {}, wrong)})
    url = f"http://127.0.0.1:{server.port}"
    hosts = FAST.trusting(url).allow_hosts
    assert (read_web_card(f"{url}/source.yaml", hosts) or SourceCard(name="")).license == "CC0-1.0"
    (tmp_path / "list.txt").write_text(f"{url}/a/b.mp4\n{url}/c.mp4\n")
    listed = source_files(str(tmp_path / "list.txt"), str(tmp_path), web=FAST).files
    rows = list(_rows(url, listed, {}, hosts))
    assert [(row["source"], row["error_type"]) for row in rows][1] == ("films", "")
    assert rows[0]["error_type"] == "unreadable"
    assert "Did you mean 'license'?" in rows[0]["error"]


def test_with_a_proxy_the_name_is_checked_before_the_proxy_is_asked(serve, monkeypatch):
    proxy = serve({})
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    with pytest.raises(FetchError) as refused:
        fetch("http://0x7f.1/a", Sink(), FAST, BUDGET)
    assert (refused.value.kind, proxy.asked) == ("inner_address", [])
    with pytest.raises(FetchError, match="answers 404"):  # of the proxy, which alone knows the name
        fetch("http://known-to-the-proxy.invalid/a", Sink(), FAST, BUDGET)
    assert [urlsplit(path).hostname for path in proxy.asked] == ["known-to-the-proxy.invalid"]


def test_a_file_that_is_read_as_a_whole_has_a_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert len(storage.read_bytes(str(tmp_path / "a"), max_bytes=11)) == 11
    with pytest.raises(ValueError, match="more than 10 bytes"):
        storage.read_bytes(str(tmp_path / "a"), max_bytes=10)
