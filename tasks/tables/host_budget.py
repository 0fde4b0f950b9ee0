"""Rate limits on requests and bytes per web host; redirects count as requests."""

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

from tasks.tables.web_hosts import Allowed, check_behind_proxy

if TYPE_CHECKING:
    from aiohttp import TraceConfig


class Budget(Protocol):
    """Interface of a rate limiter for web hosts."""

    def reserve(self, host: str, num_requests: int = 0, num_bytes: int = 0) -> float:
        """Count requests and bytes; returns the seconds to wait before these requests, or after these bytes."""
        ...

    def hold(self, host: str, seconds: float) -> None:
        """Block all requests to this host for `seconds`."""
        ...


class HostBudget:
    """Rate limiter of one process: limits requests per second and bytes per second for each host."""

    def __init__(self, requests_per_s: float, bytes_per_s: float):
        self.requests_per_s, self.bytes_per_s = requests_per_s, bytes_per_s
        self._next_start: dict[str, float] = {}  # host -> time.monotonic() at which the next request may start
        self._lock = threading.Lock()

    def reserve(self, host: str, num_requests: int = 0, num_bytes: int = 0) -> float:
        """Count requests and bytes; returns the seconds to wait before these requests, or after these bytes."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start.get(host, 0.0))
            self._next_start[host] = start + num_requests / self.requests_per_s + num_bytes / self.bytes_per_s
            return start - now

    def hold(self, host: str, seconds: float) -> None:
        """Block all requests to this host for `seconds`."""
        with self._lock:
            self._next_start[host] = max(self._next_start.get(host, 0.0), time.monotonic() + seconds)

    def waits(self) -> dict[str, float]:
        """Seconds until the next request is allowed, for each host whose next request has to wait."""
        with self._lock:
            waits = {host: start - time.monotonic() for host, start in self._next_start.items()}
        return {host: seconds for host, seconds in waits.items() if seconds > 0}


class SharedBudget:
    """A HostBudget in a Ray actor, shared by all workers of a step. It starts with the current waits of the driver."""

    def __init__(self, driver: HostBudget):
        import ray

        self._actor = ray.remote(num_cpus=0)(HostBudget).remote(driver.requests_per_s, driver.bytes_per_s)
        for host, seconds in driver.waits().items():
            self.hold(host, seconds)

    def reserve(self, host: str, num_requests: int = 0, num_bytes: int = 0) -> float:
        """As `HostBudget`."""
        import ray

        reserve: Any = self._actor.reserve  # Ray types an actor as the class itself
        return ray.get(reserve.remote(host, num_requests, num_bytes))

    def hold(self, host: str, seconds: float) -> None:
        """As `HostBudget`."""
        import ray

        hold: Any = self._actor.hold
        ray.get(hold.remote(host, seconds))


_PROCESS_BUDGET = HostBudget(requests_per_s=4, bytes_per_s=50e6)


def process_budget(requests_per_s: float = 0, bytes_per_s: float = 0) -> HostBudget:
    """The HostBudget of this process, which `storage` also uses. Rates above 0 replace its rates."""
    _PROCESS_BUDGET.requests_per_s = requests_per_s or _PROCESS_BUDGET.requests_per_s
    _PROCESS_BUDGET.bytes_per_s = bytes_per_s or _PROCESS_BUDGET.bytes_per_s
    return _PROCESS_BUDGET


def host_of(url: str) -> str:
    """Host of a URL as `host:port`, without user name and password."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def rate_limiting(budget: Budget, check: Callable[[str], Awaitable[None]] | None = None) -> "TraceConfig":
    """An aiohttp trace that delays each request and each redirect of a session by the wait of the rate limiter.

    check: called with the URL before each of them; raises an error for a URL that may not be requested.
    """
    from aiohttp import TraceConfig

    async def wait(url: str) -> None:
        if check:
            await check(url)
        await asyncio.sleep(budget.reserve(host_of(url), num_requests=1))

    async def on_start(_session: Any, _context: Any, request: Any) -> None:
        await wait(str(request.url))

    async def on_redirect(_session: Any, _context: Any, request: Any) -> None:
        headers: Mapping[str, str] = request.response.headers
        await wait(urljoin(str(request.url), headers.get("Location") or headers.get("URI") or ""))

    trace = TraceConfig()
    trace.on_request_start.append(on_start)
    trace.on_request_redirect.append(on_redirect)
    return trace


@functools.cache
def process_rate_limiting(allowed: Allowed) -> "TraceConfig":
    """`rate_limiting` of `process_budget`. Cached: fsspec reuses a file system only if its options are equal.

    allowed: hosts that may be asked though they are not public.
    """
    return rate_limiting(_PROCESS_BUDGET, functools.partial(check_behind_proxy, allowed=allowed))
