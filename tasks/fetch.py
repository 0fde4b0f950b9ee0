"""Reading files once for their ids, wherever they lie: politely from web hosts, with retries, and with a copy if asked.

A web host is asked at most so often and for so many bytes a second by all actors together, since they share a
`HostBudget`; a host that asks for a pause (`Retry-After`) gets it from all of them.
"""

import asyncio
import hashlib
import math
import os
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import Field

from pyramid_model.config import Config
from tasks import storage

CHUNK_BYTES = 4 * 2**20
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers after which another try may succeed
USER_AGENT = "pyramid-pipeline"


class FetchConfig(Config):
    """How files are fetched from web hosts; nothing here changes what is found."""

    requests_per_s: float = Field(4, gt=0, description="most requests a second to one host, by all actors together")
    bytes_per_s: float = Field(50e6, gt=0, description="most bytes a second from one host, by all actors together")
    connections: int = Field(4, ge=1, description="files that one actor fetches at once")
    tries: int = Field(4, ge=1, le=20, description="tries a file, while trouble may pass (429, 5xx, lost connections)")
    backoff_s: float = Field(1, gt=0, description="wait before the second try; doubled before each further one")
    max_wait_s: float = Field(300, gt=0, description="longest wait that a host may ask for; beyond, the file fails")
    max_bytes: float = Field(200e9, gt=0, description="a longer file fails: some hosts never end")
    timeout_s: float = Field(60, gt=0, description="a connection on which nothing comes for so long is lost")


class FetchError(Exception):
    """A file that could not be fetched; `kind` is the error_type of its row."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Busy(Exception):
    """The host may answer later; `wait_s` is what it asked for, 0 if it did not say."""

    def __init__(self, message: str, wait_s: float = 0.0):
        super().__init__(message)
        self.wait_s = wait_s


class Budget(Protocol):
    """Whom to ask before asking a host."""

    def reserve(self, host: str, num_requests: int = 0, num_bytes: int = 0) -> float:
        """Seconds to wait before these requests, or after these bytes."""
        ...

    def hold(self, host: str, seconds: float) -> None:
        """Nobody asks this host for so long."""
        ...


class HostBudget:
    """Requests and bytes a second, host by host."""

    def __init__(self, requests_per_s: float, bytes_per_s: float):
        self.requests_per_s, self.bytes_per_s = requests_per_s, bytes_per_s
        self._free: dict[str, float] = {}  # when the next request may start
        self._lock = threading.Lock()

    def reserve(self, host: str, num_requests: int = 0, num_bytes: int = 0) -> float:
        """Book these requests and bytes; returns the seconds to wait for their turn."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free.get(host, 0.0))
            self._free[host] = start + num_requests / self.requests_per_s + num_bytes / self.bytes_per_s
            return start - now

    def hold(self, host: str, seconds: float) -> None:
        """Let nobody ask this host for so long."""
        with self._lock:
            self._free[host] = max(self._free.get(host, 0.0), time.monotonic() + seconds)


class SharedBudget:
    """The HostBudget of a step, which lives in a Ray actor."""

    def __init__(self, config: FetchConfig):
        import ray

        self._actor = ray.remote(num_cpus=0)(HostBudget).remote(config.requests_per_s, config.bytes_per_s)

    def reserve(self, host: str, num_requests: int = 0, num_bytes: int = 0) -> float:
        """As HostBudget."""
        import ray

        return ray.get(self._actor.reserve.remote(host, num_requests, num_bytes))

    def hold(self, host: str, seconds: float) -> None:
        """As HostBudget."""
        import ray

        ray.get(self._actor.hold.remote(host, seconds))


def is_web(uri: str) -> bool:
    """Whether a file comes from a web host, which may be slow, busy, and a stranger's."""
    return uri.startswith(("http://", "https://"))


class Sink:
    """What becomes of the bytes of a file: their hashes, their number, and a local copy."""

    def __init__(self, path: str = "", sums: tuple[str, ...] = ()):
        self.path, self.sums = path, sums
        self.restart()

    def restart(self) -> None:
        """Forget what came: a new try begins."""
        self.size_bytes = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._sums = {name: hashlib.new(name, usedforsecurity=False) for name in self.sums}
        if self.path:
            os.truncate(self.path, 0)

    def write(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.size_bytes += len(chunk)
        for digest in (self._digest, *self._sums.values()):
            digest.update(chunk)
        if self.path:
            with open(self.path, "ab") as file:
                file.write(chunk)

    @property
    def video_id(self) -> str:
        """blake2b-128 of the bytes, as hex."""
        return self._digest.hexdigest()

    def sum(self, name: str) -> str:
        """One of the other hashes that were asked for, as hex."""
        return self._sums[name].hexdigest()


def read_file(uri: str, sink: Sink, start: int = 0, size_bytes: int | None = None) -> None:
    """The bytes of a file on any file system, or of a part of it, piece by piece.

    Raises:
        FileNotFoundError: there is none; other exceptions are those of its file system.
    """
    sink.restart()
    for piece in storage.read_pieces(uri, start, size_bytes):
        sink.write(piece)


def fetch(url: str, sink: Sink, config: FetchConfig, budget: Budget, limit_s: float = math.inf) -> None:
    """The bytes behind a URL, in as many tries as it takes, up to `config.tries`, and `limit_s` seconds in all.

    Raises:
        FetchError: `missing`, `refused`, `busy` (asks for too long a wait), `too_large`, `unreachable` (no try
            succeeded), `timeout`, or `unreadable` (anything else).
    """
    host, deadline = urlsplit(url).netloc, time.monotonic() + limit_s
    for number in range(config.tries):
        sink.restart()
        try:
            return asyncio.run(_get_until(deadline, url, host, sink, config, budget))
        except TimeoutError as err:
            came = f"{sink.size_bytes} bytes of {url} came in {limit_s:.0f} s, and it did not end"
            raise FetchError("timeout", f"{came} (ray.no_progress_timeout_s). Later: --retry-failed") from err
        except Busy as err:
            if err.wait_s > config.max_wait_s:
                asks = f"{err} and asks to wait {err.wait_s:.0f} s, longer than ingest.fetch.max_wait_s"
                raise FetchError("busy", f"{asks}. Later: --retry-failed") from err
            if number == config.tries - 1:
                raise FetchError("unreachable", f"{err} ({config.tries} tries). Later: --retry-failed") from err
            if err.wait_s:
                budget.hold(host, err.wait_s)  # the next try waits with all others of this host
            else:
                time.sleep(min(config.backoff_s * 2**number, max(0.0, deadline - time.monotonic())))


async def _get_until(deadline: float, url: str, host: str, sink: Sink, config: FetchConfig, budget: Budget) -> None:
    """One try, as `_get`, that is over at a time of the monotonic clock.

    Raises:
        TimeoutError: it was not done by then.
    """
    left_s = deadline - time.monotonic()
    async with asyncio.timeout(None if left_s == math.inf else left_s):
        await _get(url, host, sink, config, budget)


async def _get(url: str, host: str, sink: Sink, config: FetchConfig, budget: Budget) -> None:
    """One try.

    Raises:
        Busy: another may succeed.
        FetchError: no other will.
    """
    import aiohttp

    await asyncio.sleep(budget.reserve(host, num_requests=1))
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_s, sock_read=config.timeout_s)
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}  # the bytes as they lie there
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers, trust_env=True) as session,
            session.get(url) as answer,
        ):
            _check_answer(url, answer.status, answer.headers)
            await _take(answer.content, host, sink, config, budget)
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as err:
        raise Busy(f"{type(err).__name__}: {err}") from err
    except (aiohttp.ClientError, ValueError) as err:  # no URL, too many redirects, no HTTP
        raise FetchError("unreadable", f"{type(err).__name__}: {err}") from err


async def _take(content: Any, host: str, sink: Sink, config: FetchConfig, budget: Budget) -> None:
    """Bytes into the sink; while we wait, the connection fills its buffer and the host waits as well."""
    unbooked = 0  # chunks are as small as they arrive, and booking each would take longer than reading it
    async for chunk in content.iter_chunked(CHUNK_BYTES):
        sink.write(chunk)
        if sink.size_bytes > config.max_bytes:
            raise FetchError("too_large", f"more than {config.max_bytes:.0f} bytes came (ingest.fetch.max_bytes)")
        unbooked += len(chunk)
        if unbooked >= CHUNK_BYTES:
            await asyncio.sleep(budget.reserve(host, num_bytes=unbooked))
            unbooked = 0
    budget.reserve(host, num_bytes=unbooked)


def _check_answer(url: str, status: int, headers: Any) -> None:
    """Sort out the answers that bring no file."""
    if status < 400:
        return
    answer = f"{url} answers {status}"
    if status in TRANSIENT:
        raise Busy(answer, retry_after_s(headers.get("Retry-After", "")))
    if status in (404, 410):
        raise FetchError("missing", answer)
    raise FetchError("refused" if status in (401, 403, 407, 451) else "unreadable", answer)


def retry_after_s(value: str) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 when it holds neither."""
    if value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
