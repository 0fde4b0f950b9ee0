"""Which addresses web requests may reach: public ones, and those that the user allows.

Lists and cards come from elsewhere and name hosts. Without this check they could make us ask servers of the inner
network, or the metadata service of a cloud. The address is checked at the moment of the connection, so redirects, DNS
answers that change, and odd spellings of addresses change nothing.
"""

import errno
import functools
import ipaddress
import socket
import urllib.request
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    import aiohttp

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Allowed = tuple[str, ...]
SETTING = "ingest.fetch.allow_hosts"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# They look public to Python: protocol assignments (metadata of Oracle), and the host of Azure's virtual machines.
INNER = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32")))
PORTS = {"http": 80, "https": 443}


class AddressRefusedError(OSError):
    """The address of a web host is neither public nor allowed. `kind` is the error_type of the row."""

    kind = "inner_address"

    def __init__(self, host: str, address: str):
        at = "" if host == address else f" has the address {address}, which"
        super().__init__(
            errno.EACCES,
            f"{host}{at} is not public: if it may be asked, add it to {SETTING}, as name, name:port or network",
        )


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, also after unwrapping of IPv4 addresses inside IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    special = address.is_multicast or address.is_reserved or any(address in network for network in INNER)
    return address.is_global and not special


def is_allowed(address: Address, port: int, allowed: Iterable[str]) -> bool:
    """Whether an address is on the list of allowed hosts. allowed: `name`, `name:port`, addresses or networks."""
    return any(
        allowed_port in (None, port) and any(address in network for network in _networks(host))
        for host, allowed_port in map(_host_and_port, allowed)
    )


def check_address(host: str, address: str, port: int, allowed: Iterable[str]) -> None:
    """Raise an error for an address that may not be asked.

    Raises:
        AddressRefusedError: the address is neither public nor allowed.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if not is_public(parsed) and not is_allowed(parsed, port, allowed):
        raise AddressRefusedError(host, address)


def check_allow_host(entry: str) -> str:
    """An entry of the allow list, unchanged.

    Raises:
        ValueError: it is neither a host, with or without port, nor a network.
    """
    host, _ = _host_and_port(entry)
    if not host or any(sign in host for sign in "@? *") or ("/" in host and not _as_network(host)):
        raise ValueError(f"{entry!r} is not a host: write name, name:port, an address, or a network such as 10.0.0.0/8")
    return entry


def addresses_now(url: str) -> Allowed:
    """The addresses, as `address:port`, that the host of a URL has now; those that are public are left out.

    For a URL that the user typed: its host may be asked even if it is not public. A host that changes its addresses
    afterwards gets no new ones. Empty for a path or a URI of another scheme.
    """
    parts = _parts(url)
    if parts is None or parts.scheme not in PORTS or not parts.hostname:
        return ()
    port = parts.port or PORTS.get(parts.scheme, 0)
    addresses = [address for address in _resolved(parts.hostname) if not is_public(address)]
    return tuple(f"[{address}]:{port}" for address in addresses)


def make_connector(allowed: Allowed, refusals: list[AddressRefusedError] | None = None) -> "aiohttp.TCPConnector":
    """A connector of aiohttp that connects to public and allowed addresses only.

    allowed: as `is_allowed`. refusals: gets the errors, since aiohttp shows them only as text.
    """
    import aiohttp

    return aiohttp.TCPConnector(socket_factory=functools.partial(_open_socket, allowed, refusals))


def _open_socket(allowed: Allowed, refusals: list[AddressRefusedError] | None, info: tuple[Any, ...]) -> socket.socket:
    """A socket for one address. info: as an item of `socket.getaddrinfo`."""
    family, kind, protocol, _, (address, port, *_) = info
    try:
        check_address(address, address, port, (*allowed, *_proxies()))
    except AddressRefusedError as err:
        if refusals is not None:
            refusals.append(err)
        raise
    return socket.socket(family=family, type=kind, proto=protocol)


async def check_behind_proxy(url: str, allowed: Allowed) -> None:
    """With a proxy, check the host of a URL by its name, since the proxy makes the connection.

    Raises:
        AddressRefusedError: as `check_address`. A name that only the proxy can resolve passes.
    """
    import asyncio

    parts = _parts(url)
    if not _proxies() or parts is None or not parts.hostname:
        return
    for address in await asyncio.to_thread(_resolved, parts.hostname):
        check_address(parts.hostname, str(address), parts.port or PORTS.get(parts.scheme, 0), allowed)


async def web_client(allowed: Allowed, **options: Any) -> "aiohttp.ClientSession":
    """Session of fsspec's HTTP file system that asks public and allowed hosts only. allowed: as `is_allowed`."""
    import aiohttp

    return aiohttp.ClientSession(connector=make_connector(allowed), **options)


def check_host(url: str, allowed: Allowed) -> None:
    """Check the host of a URL by its name: fsspec shows an error of the connection as a missing file.

    Raises:
        AddressRefusedError: as `check_address`. A name without addresses passes.
    """
    parts = _parts(url)
    if parts is None or not parts.hostname:
        return
    for address in _resolved(parts.hostname):
        check_address(parts.hostname, str(address), parts.port or PORTS.get(parts.scheme, 0), allowed)


def _proxies() -> Allowed:
    """Proxies of the environment, which the operator of the machine has set."""
    parts = [_parts(url if "://" in url else f"http://{url}") for url in urllib.request.getproxies().values()]
    return tuple(f"{p.hostname}:{p.port or PORTS.get(p.scheme, 80)}" for p in parts if p and p.hostname)


def _parts(url: str) -> SplitResult | None:
    """Parts of a URL; None if it is not one."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _host_and_port(entry: str) -> tuple[str, int | None]:
    """`name:80` and `[::1]:80` -> name and port; without a port, None."""
    if entry.startswith("["):
        host, _, port = entry[1:].partition("]")
        return host, int(port[1:]) if port[1:].isdigit() else None
    host, colon, port = entry.rpartition(":")
    return (host, int(port)) if colon and port.isdigit() and ":" not in host else (entry, None)


def _networks(host: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The addresses of an allowed host, as networks."""
    network = _as_network(host)
    if network:
        yield network
    else:
        yield from (ipaddress.ip_network(address) for address in _resolved(host))


def _as_network(host: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(host, strict=False)
    except ValueError:
        return None


def _resolved(host: str) -> list[Address]:
    """Addresses of a host name; empty if it has none. Odd spellings such as `0x7f.1` are read as the system does."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos))
