"""How often web hosts are asked, and for how much: every request waits for its turn, redirects included."""

import asyncio
import functools
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

if TYPE_CHECKING:
    from aiohttp import TraceConfig


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

    def waits(self) -> dict[str, float]:
        """Seconds until each host may be asked again, of those that may not be asked now."""
        with self._lock:
            left = {host: free - time.monotonic() for host, free in self._free.items()}
        return {host: seconds for host, seconds in left.items() if seconds > 0}


class SharedBudget:
    """The HostBudget of a step, which lives in a Ray actor; it begins where that of the driver stands."""

    def __init__(self, driver: HostBudget):
        import ray

        self._actor = ray.remote(num_cpus=0)(HostBudget).remote(driver.requests_per_s, driver.bytes_per_s)
        for host, seconds in driver.waits().items():
            self.hold(host, seconds)

    def reserve(self, host: str, num_requests: int = 0, num_bytes: int = 0) -> float:
        """As HostBudget."""
        import ray

        reserve: Any = self._actor.reserve  # Ray types an actor as the class itself
        return ray.get(reserve.remote(host, num_requests, num_bytes))

    def hold(self, host: str, seconds: float) -> None:
        """As HostBudget."""
        import ray

        hold: Any = self._actor.hold
        ray.get(hold.remote(host, seconds))


_OWN = HostBudget(requests_per_s=4, bytes_per_s=50e6)


def own_budget(requests_per_s: float = 0, bytes_per_s: float = 0) -> HostBudget:
    """The one of this process, which also binds what goes through `storage`; rates above 0 are taken over."""
    _OWN.requests_per_s = requests_per_s or _OWN.requests_per_s
    _OWN.bytes_per_s = bytes_per_s or _OWN.bytes_per_s
    return _OWN


def host_of(url: str) -> str:
    """Whom a URL asks, `host:port` without names and passwords."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def waiting_for_turns(budget: Budget) -> "TraceConfig":
    """What makes each request of an aiohttp session, and each redirect that it follows, wait for its turn."""
    from aiohttp import TraceConfig

    async def turn(url: str) -> None:
        await asyncio.sleep(budget.reserve(host_of(url), num_requests=1))

    async def starts(_session: Any, _context: Any, request: Any) -> None:
        await turn(str(request.url))

    async def goes_on(_session: Any, _context: Any, request: Any) -> None:
        headers: Mapping[str, str] = request.response.headers
        await turn(urljoin(str(request.url), headers.get("Location") or headers.get("URI") or ""))

    trace = TraceConfig()
    trace.on_request_start.append(starts)
    trace.on_request_redirect.append(goes_on)
    return trace


@functools.cache
def own_turns() -> "TraceConfig":
    """`waiting_for_turns` of `own_budget`: one object, so that file systems with it are one, too."""
    return waiting_for_turns(_OWN)
