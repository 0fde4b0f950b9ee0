"""Reading files once for their ids, wherever they lie: politely from web hosts, with retries, and with a copy if asked.

A web host is asked at most so often and for so many bytes a second by all actors together, since they share a
`HostBudget`; a host that asks for a pause (`Retry-After`) gets it from all of them. A download that breaks off goes on
where it was, from hosts that can tell whether the file is still the same.
"""

import asyncio
import hashlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from pydantic import Field

from pyramid_model.config import Config
from tasks.tables import storage
from tasks.tables.host_budget import Budget, HostBudget, host_of, own_budget, waiting_for_turns

T = TypeVar("T")

CHUNK_BYTES = 4 * 2**20
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers after which another try may succeed
PART, NO_SUCH_PART = 206, 416
USER_AGENT = "pyramid-pipeline"


class FetchConfig(Config):
    """How files are fetched from web hosts; nothing here changes what is found."""

    requests_per_s: float = Field(4, gt=0, description="most requests a second to one host, of all actors together")
    bytes_per_s: float = Field(50e6, gt=0, description="most bytes a second from one host, of all actors together")
    connections: int = Field(4, ge=1, description="files that one actor downloads at the same time")
    tries: int = Field(
        4, ge=1, le=20, description="most tries for a file after temporary errors (429, 5xx, lost connections)"
    )
    backoff_s: float = Field(1, gt=0, description="wait before the second try; doubled before each later one")
    max_wait_s: float = Field(300, gt=0, description="longest Retry-After of a host; after a longer one the file fails")
    max_bytes: float = Field(
        200e9, gt=0, description="most bytes of a file, since some hosts send without end; a larger file fails"
    )
    timeout_s: float = Field(60, gt=0, description="a connection without data for this time counts as lost")

    def own_budget(self) -> HostBudget:
        """The budget of this process, at these rates."""
        return own_budget(self.requests_per_s, self.bytes_per_s)


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


def is_web(uri: str) -> bool:
    """Whether a file comes from a web host, which may be slow, busy, and a stranger's."""
    return uri.startswith(("http://", "https://"))


class Sink:
    """What becomes of the bytes of a file: their hashes, their number, and a local copy."""

    def __init__(self, path: str = "", sums: tuple[str, ...] = ()):
        self.path, self.sums = path, sums
        self.restart()

    def restart(self, validator: str = "") -> None:
        """Forget what came: the file begins anew. validator: of what comes now, to go on with it later."""
        self.size_bytes, self.validator = 0, validator
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
    def resumable(self) -> bool:
        """Whether what came can be gone on with."""
        return bool(self.size_bytes and self.validator)

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

    A try goes on where the one before broke off, if a strong validator of the host says that the file is the same.

    Raises:
        FetchError: `missing`, `refused`, `busy` (asks for too long a wait), `too_large`, `unreachable` (no try
            succeeded), `timeout`, or `unreadable` (anything else).
    """
    sink.restart()
    try:
        _persistently(lambda: _get(url, sink, config, budget), host_of(url), config, budget, limit_s)
    except TimeoutError as err:
        came = f"{sink.size_bytes} bytes of {url} came in {limit_s:.0f} s, and it did not end"
        raise FetchError("timeout", f"{came} (ray.no_progress_timeout_s). Later: --retry-failed") from err


def look(url: str, num_bytes: int, config: FetchConfig, budget: Budget) -> "Look":
    """The beginning of a file, by one request.

    Raises:
        FetchError: as `fetch`.
    """
    return _persistently(lambda: _look(url, num_bytes, config, budget), host_of(url), config, budget)


def _persistently(
    attempt: Callable[[], Coroutine[Any, Any, T]],
    host: str,
    config: FetchConfig,
    budget: Budget,
    limit_s: float = math.inf,
) -> T:
    """What an attempt gives, made again while the trouble may pass.

    Raises:
        FetchError: it does not pass, or no try will help.
        TimeoutError: all tries together took longer than `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    for number in range(config.tries):
        try:
            return asyncio.run(_until(deadline, attempt))
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
    raise AssertionError("the last try returns or raises")


async def _until(deadline: float, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """An attempt that is over at a time of the monotonic clock.

    Raises:
        TimeoutError: it was not done by then.
    """
    left_s = deadline - time.monotonic()
    async with asyncio.timeout(None if left_s == math.inf else left_s):
        return await attempt()


async def _get(url: str, sink: Sink, config: FetchConfig, budget: Budget) -> None:
    """One try, from where the sink is.

    Raises:
        Busy: another may succeed.
        FetchError: no other will.
    """
    asked = {"Range": f"bytes={sink.size_bytes}-", "If-Range": sink.validator} if sink.resumable else {}
    async with _answer(url, asked, config, budget) as answer:
        if answer.status == PART and asked:
            if not _goes_on(answer.headers, sink):
                sink.restart()
                raise Busy(f"{url} answers with another part than the one that is missing")
        elif answer.status == NO_SUCH_PART:
            sink.restart()
            raise Busy(f"{url} has no more than what came, and it broke off there")
        else:
            _check_answer(url, answer.status, answer.headers)
            sink.restart(strong_validator(answer.headers))
        await _take(answer.content, host_of(url), sink, config, budget)


@dataclass(frozen=True)
class Look:
    """The beginning of a file of a web host."""

    head: bytes
    is_html: bool  # by what the host says


async def _look(url: str, num_bytes: int, config: FetchConfig, budget: Budget) -> Look:
    async with _answer(url, {"Range": f"bytes=0-{num_bytes - 1}"}, config, budget) as answer:
        if answer.status == NO_SUCH_PART:
            return Look(b"", False)  # it is empty
        _check_answer(url, answer.status, answer.headers)
        head = b""
        async for chunk in answer.content.iter_chunked(num_bytes):
            head += chunk
            if len(head) >= num_bytes:  # a host may send more than the part that was asked for
                break
        return Look(head[:num_bytes], answer.content_type == "text/html" and "Content-Type" in answer.headers)


@asynccontextmanager
async def _answer(url: str, headers: Mapping[str, str], config: FetchConfig, budget: Budget) -> AsyncIterator[Any]:
    """What a host answers to one request, with its troubles sorted into Busy and FetchError."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_s, sock_read=config.timeout_s)
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}  # the bytes as they lie there
    turns = [waiting_for_turns(budget)]
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers, trust_env=True, trace_configs=turns) as session,
            session.get(url) as answer,
        ):
            yield answer
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as err:
        raise Busy(f"{type(err).__name__}: {err}") from err
    except (aiohttp.ClientError, ValueError) as err:  # no URL, too many redirects, no HTTP
        raise FetchError("unreadable", f"{type(err).__name__}: {err}") from err


def strong_validator(headers: Mapping[str, str]) -> str:
    """The ETag of an answer where equal ones mean equal bytes; empty where it has none."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else ""


def _goes_on(headers: Mapping[str, str], sink: Sink) -> bool:
    """Whether a part of a file begins where the sink stands, and is of the same file."""
    begins = headers.get("Content-Range", "").startswith(f"bytes {sink.size_bytes}-")
    return begins and headers.get("ETag", sink.validator) == sink.validator


async def _take(content: Any, host: str, sink: Sink, config: FetchConfig, budget: Budget) -> None:
    """Bytes into the sink; while we wait, the connection fills its buffer and the host waits as well."""
    unbooked = 0  # chunks are as small as they arrive, and booking each would take longer than reading it
    try:
        async for chunk in content.iter_chunked(CHUNK_BYTES):
            sink.write(chunk)
            if sink.size_bytes > config.max_bytes:
                raise FetchError("too_large", f"more than {config.max_bytes:.0f} bytes came (ingest.fetch.max_bytes)")
            unbooked += len(chunk)
            if unbooked >= CHUNK_BYTES:
                await asyncio.sleep(budget.reserve(host, num_bytes=unbooked))
                unbooked = 0
    finally:
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
