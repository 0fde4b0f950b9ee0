"""Reading of source files: hashes, optional local copies, and downloads from web hosts with rate limits and retries.

All actors share a `HostBudget`, which limits requests and bytes per second of each host. If a host asks for a pause
(`Retry-After`), all actors wait. An interrupted download continues where it stopped, if the host gives a strong
validator for the file.
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
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, field_validator

from pyramid_model.config import Config
from tasks.tables import storage
from tasks.tables.host_budget import Budget, HostBudget, host_of, process_budget, rate_limiting
from tasks.tables.web_hosts import (
    AddressRefusedError,
    Allowed,
    addresses_now,
    check_allow_host,
    check_behind_proxy,
    make_connector,
)

if TYPE_CHECKING:
    from aiohttp import ClientResponse, StreamReader

T = TypeVar("T")
Attempt = Callable[[], Coroutine[Any, Any, T]]

CHUNK_BYTES = 4 * 2**20
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses after which a retry may succeed
PART, NO_SUCH_PART = 206, 416  # HTTP statuses of answers to range requests
USER_AGENT = "pyramid-pipeline"


class FetchConfig(Config):
    """Settings of downloads from web hosts; none of them changes the content of a file."""

    requests_per_s: float = Field(
        default=4, gt=0, description="most requests per second to one host, of all actors together"
    )
    bytes_per_s: float = Field(
        default=50e6, gt=0, description="most bytes per second from one host, of all actors together"
    )
    connections: int = Field(default=4, ge=1, description="files that one actor downloads at the same time")
    tries: int = Field(
        default=4, ge=1, le=20, description="most tries for a file after temporary errors (429, 5xx, lost connections)"
    )
    backoff_s: float = Field(default=1, gt=0, description="wait before the second try; doubled before each later one")
    max_wait_s: float = Field(
        default=300, gt=0, description="longest Retry-After of a host; after a longer one the file fails"
    )
    max_bytes: float = Field(
        default=200e9, gt=0, description="most bytes of a file, since some hosts send without end; a larger file fails"
    )
    timeout_s: float = Field(default=60, gt=0, description="a connection without data for this time counts as lost")
    allow_hosts: tuple[str, ...] = Field(
        default=(),
        description="hosts that lists may name although their addresses are not public: name, name:port, address or "
        "network such as 10.0.0.0/8",
    )

    @field_validator("allow_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_allow_host, hosts))

    def trusting(self, *urls: str) -> "FetchConfig":
        """These settings, with the hosts of URLs that the user typed among the allowed ones."""
        typed = [address for url in urls for address in addresses_now(url)]
        hosts = tuple(dict.fromkeys([*self.allow_hosts, *typed]))
        return self.model_copy(update={"allow_hosts": hosts})

    def process_budget(self) -> HostBudget:
        """The budget of this process, with these rates."""
        return process_budget(self.requests_per_s, self.bytes_per_s)


class FetchError(Exception):
    """A file cannot be fetched. `kind` is the error_type of its row."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class RetryableError(Exception):
    """A try failed, but another may succeed. `wait_s`: pause that the host asks for; 0 if it asks for none."""

    def __init__(self, message: str, wait_s: float = 0.0):
        super().__init__(message)
        self.wait_s = wait_s


def is_web(uri: str) -> bool:
    """Whether a URI is a URL of a web host (http or https)."""
    return uri[:8].lower().startswith(("http://", "https://"))


class Sink:
    """Consumes the bytes of a file: computes hashes and size, and writes a local copy.

    path: existing file for the copy; "": no copy.
    sums: names of hashes besides that of the video id, such as sha256.
    """

    def __init__(self, path: str = "", sums: tuple[str, ...] = ()):
        self.path, self.sums = path, sums
        self.restart()

    def restart(self, validator: str = "") -> None:
        """Discard all bytes and start the file again. validator: of the file that follows, for resuming it."""
        self.size_bytes, self.validator = 0, validator
        self._digest = hashlib.blake2b(digest_size=16)
        self._sums = {name: hashlib.new(name, usedforsecurity=False) for name in self.sums}
        if self.path:
            os.truncate(self.path, 0)

    def write(self, chunk: bytes) -> None:
        """Consume the next bytes."""
        self.size_bytes += len(chunk)
        for digest in (self._digest, *self._sums.values()):
            digest.update(chunk)
        if self.path:
            with open(self.path, "ab") as file:
                file.write(chunk)

    @property
    def resumable(self) -> bool:
        """Whether an interrupted download can continue after these bytes."""
        return bool(self.size_bytes and self.validator)

    @property
    def video_id(self) -> str:
        """blake2b-128 of the bytes, as hex."""
        return self._digest.hexdigest()

    def sum(self, name: str) -> str:
        """One of the hashes named in `sums`, as hex."""
        return self._sums[name].hexdigest()


def read_file(uri: str, sink: Sink, start: int = 0, size_bytes: int | None = None, hosts: Allowed = ()) -> None:
    """Read a file on any file system, or a part of it, into the sink. hosts: as `storage.filesystem`.

    Raises:
        FileNotFoundError: the file does not exist. Other exceptions come from its file system.
    """
    sink.restart()
    for piece in storage.read_pieces(uri, start, size_bytes, hosts):
        sink.write(piece)


def fetch(url: str, sink: Sink, config: FetchConfig, budget: Budget, limit_s: float = math.inf) -> None:
    """Download a URL into the sink, with at most `config.tries` tries and `limit_s` seconds in all.

    A try continues where the one before stopped, if the strong validator of the host shows that the file is unchanged.

    Raises:
        FetchError: its kind is `missing`, `refused`, `busy` (the host asks for too long a pause), `too_large`,
            `unreachable` (no try succeeded), `timeout`, or `unreadable` (all others).
    """
    sink.restart()
    try:
        _with_retries(lambda: _get(url, sink, config, budget), host_of(url), config, budget, limit_s)
    except TimeoutError as err:
        progress = f"{sink.size_bytes} bytes of {url} arrived in {limit_s:.0f} s, and the file is not complete"
        raise FetchError("timeout", f"{progress} (ray.no_progress_timeout_s). Later: --retry-failed") from err


def look(url: str, num_bytes: int, config: FetchConfig, budget: Budget) -> "Look":
    """Read the beginning of a file of a web host with one request.

    Raises:
        FetchError: as `fetch`.
    """
    return _with_retries(lambda: _look(url, num_bytes, config, budget), host_of(url), config, budget)


def _with_retries(
    attempt: Attempt[T],
    host: str,
    config: FetchConfig,
    budget: Budget,
    limit_s: float = math.inf,
) -> T:
    """Result of an attempt; after a RetryableError the attempt is repeated.

    Raises:
        FetchError: the last try failed, or no retry can succeed.
        TimeoutError: all tries together took longer than `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    for number in range(config.tries):
        try:
            return asyncio.run(_until(deadline, attempt))
        except RetryableError as err:
            if err.wait_s > config.max_wait_s:
                asks = f"{err} and asks to wait {err.wait_s:.0f} s, longer than ingest.fetch.max_wait_s"
                raise FetchError("busy", f"{asks}. Later: --retry-failed") from err
            if number == config.tries - 1:
                raise FetchError("unreachable", f"{err} ({config.tries} tries). Later: --retry-failed") from err
            if err.wait_s:
                budget.hold(host, err.wait_s)  # all requests to this host wait, and so does the next try
            else:
                time.sleep(min(config.backoff_s * 2**number, max(0.0, deadline - time.monotonic())))
    raise AssertionError("the last try returns or raises")


async def _until(deadline: float, attempt: Attempt[T]) -> T:
    """Result of an attempt that may last until `deadline`, a time of the monotonic clock.

    Raises:
        TimeoutError: the attempt was not done by then.
    """
    timeout_s = deadline - time.monotonic()
    async with asyncio.timeout(None if timeout_s == math.inf else timeout_s):
        return await attempt()


async def _get(url: str, sink: Sink, config: FetchConfig, budget: Budget) -> None:
    """One try, which continues after the bytes in the sink.

    Raises:
        RetryableError: another try may succeed.
        FetchError: every try would fail.
    """
    range_headers = {"Range": f"bytes={sink.size_bytes}-", "If-Range": sink.validator} if sink.resumable else {}
    async with _answer(url, range_headers, config, budget) as answer:
        if answer.status == PART and range_headers:
            if not _continues(answer.headers, sink):
                sink.restart()
                raise RetryableError(f"{url} answers with another part of the file than requested")
        elif answer.status == NO_SUCH_PART:
            sink.restart()
            raise RetryableError(f"{url} ends where the interrupted download stopped")
        else:
            _check_answer(url, answer.status, answer.headers)
            sink.restart(strong_validator(answer.headers))
        await _take(answer.content, host_of(url), sink, config, budget)


@dataclass(frozen=True)
class Look:
    """Beginning of a file of a web host. is_html: the host calls it an HTML page."""

    head: bytes
    is_html: bool


async def _look(url: str, num_bytes: int, config: FetchConfig, budget: Budget) -> Look:
    async with _answer(url, {"Range": f"bytes=0-{num_bytes - 1}"}, config, budget) as answer:
        if answer.status == NO_SUCH_PART:
            return Look(b"", False)  # the file is empty
        _check_answer(url, answer.status, answer.headers)
        head = b""
        async for chunk in answer.content.iter_chunked(num_bytes):
            head += chunk
            if len(head) >= num_bytes:  # a host may ignore the requested range
                break
        return Look(head[:num_bytes], answer.content_type == "text/html" and "Content-Type" in answer.headers)


@asynccontextmanager
async def _answer(
    url: str, headers: Mapping[str, str], config: FetchConfig, budget: Budget
) -> "AsyncIterator[ClientResponse]":
    """Answer of a host to one request, with its errors as RetryableError or FetchError."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_s, sock_read=config.timeout_s)
    headers = {
        "User-Agent": USER_AGENT,
        "Accept-Encoding": "identity",
        **headers,
    }  # identity: the stored bytes, uncompressed
    refusals: list[AddressRefusedError] = []
    try:
        async with (
            aiohttp.ClientSession(
                connector=make_connector(config.allow_hosts, refusals),
                timeout=timeout,
                headers=headers,
                trust_env=True,
                trace_configs=[rate_limiting(budget, lambda target: check_behind_proxy(target, config.allow_hosts))],
            ) as session,
            session.get(url) as answer,
        ):
            yield answer
    except AddressRefusedError as err:
        raise FetchError(err.kind, f"{url}: {err.strerror}") from err
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as err:
        if refusals:
            raise FetchError(refusals[0].kind, f"{url}: {refusals[0].strerror}") from err
        raise RetryableError(f"{type(err).__name__}: {err}") from err
    except (aiohttp.ClientError, ValueError) as err:  # an invalid URL, too many redirects, or no HTTP
        raise FetchError("unreadable", f"{type(err).__name__}: {err}") from err


def strong_validator(headers: Mapping[str, str]) -> str:
    """ETag of an answer, if equal tags guarantee equal bytes; else ""."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else ""


def _continues(headers: Mapping[str, str], sink: Sink) -> bool:
    """Whether a part of a file starts after the bytes in the sink and belongs to the same file."""
    starts_there = headers.get("Content-Range", "").startswith(f"bytes {sink.size_bytes}-")
    return starts_there and headers.get("ETag", sink.validator) == sink.validator


async def _take(content: "StreamReader", host: str, sink: Sink, config: FetchConfig, budget: Budget) -> None:
    """Write the bytes of an answer into the sink at the rate of the budget."""
    unbooked = 0  # bytes; chunks may be small, and booking each would take longer than reading it
    try:
        async for chunk in content.iter_chunked(CHUNK_BYTES):
            sink.write(chunk)
            if sink.size_bytes > config.max_bytes:
                raise FetchError(
                    "too_large", f"more than {config.max_bytes:.0f} bytes arrived (ingest.fetch.max_bytes)"
                )
            unbooked += len(chunk)
            if unbooked >= CHUNK_BYTES:
                await asyncio.sleep(budget.reserve(host, num_bytes=unbooked))
                unbooked = 0
    finally:
        budget.reserve(host, num_bytes=unbooked)


def _check_answer(url: str, status: int, headers: Mapping[str, str]) -> None:
    """Raise RetryableError or FetchError for a status that is an error."""
    if status < 400:
        return
    answer = f"{url} answers {status}"
    if status in TRANSIENT:
        raise RetryableError(answer, retry_after_s(headers.get("Retry-After", "")))
    if status in (404, 410):
        raise FetchError("missing", answer)
    raise FetchError("refused" if status in (401, 403, 407, 451) else "unreadable", answer)


def retry_after_s(value: str) -> float:
    """Seconds of a Retry-After header, which has seconds or a date; 0 for any other value."""
    if value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
