"""Which addresses a webhook may reach: the guard against requests into the operator's own network. Pure.

A URL is judged when it is accepted (`refusal`, without DNS) and again at each try, when every address that its name
resolves to is judged as well (`allowed`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MOST_CHARACTERS = 2048
_MOST_IN_NAME = 253
_NO_HOST = "must name a host, and a port from 1 to 65535 if any, as https://hooks.example.com:8443/path"

# Our own list, after the IANA registries of special addresses: `is_private` and `is_global` of `ipaddress` changed
# their minds between the releases of one Python version.
_INTERNAL_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network; Linux takes it for loopback
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT, and a cloud's metadata service
            "127.0.0.0/8",
            "168.63.129.16/32",  # a cloud's host, at a public address
            "169.254.0.0/16",  # link-local, with the clouds' metadata services
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""The upper half of interface identifiers whose lower half is an IPv4 address that a tunnel would lead to."""
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
"""Outside of it lie loopback, ULA, link-local, site-local, multicast, IPv4-mapped, NAT64 and the unassigned."""
_INTERNAL_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4: carries any IPv4 address
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
_LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))

Ports = Sequence[tuple[int, int]]
"""Ranges of ports, (first, last)."""
ALL_PORTS: Ports = ((1, 65_535),)

_PLAIN = re.compile(r"[!-\[\]-~]+")
"""Printable ASCII without the backslash: what every parser of URLs reads in the same way."""
_NETLOC = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")
_INSIDE = (
    "corp",
    "home",
    "home.arpa",
    "internal",
    "intranet",
    "lan",
    "local",
    "localdomain",
    "private",
    "svc",
)
"""Names that mean something only inside somebody's network."""


def refusal(url: str, networks: Sequence[str], ports: Ports = ALL_PORTS) -> str | None:
    """Return why a webhook URL may not be used, None when it may.

    `networks` are the internal networks (CIDR) that the operator opened, `ports` the ports that may be reached, there
    too. Names are not resolved here: where they lead is judged by `allowed` at each try. The text begins like `must
    be` or `names`, to stand behind the field's name.
    """
    if len(url) > _MOST_CHARACTERS:
        return f"must be at most {_MOST_CHARACTERS} characters long"
    if not _PLAIN.fullmatch(url):
        return (
            "must be printable ASCII without spaces or backslashes (names in their xn-- form, other characters as %XX)"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return _NO_HOST
    if port is not None and port < 1:
        return _NO_HOST
    return (
        _parts_refusal(parts)
        or _port_refusal(parts.port or (443 if parts.scheme == "https" else 80), ports)
        or _host_refusal(parts.hostname or "", _opened(tuple(networks)))
    )


def allowed(address: str, networks: Sequence[str]) -> bool:
    """Tell whether a resolved address may be dialled: on the internet, or in a network that the operator opened."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return _may_reach(parsed, _opened(tuple(networks)))


@lru_cache(maxsize=64)
def _opened(networks: tuple[str, ...]) -> tuple[_Network, ...]:
    return tuple(_plain(ipaddress.ip_network(network, strict=False)) for network in networks)


def _plain(network: _Network) -> _Network:
    """Return the IPv4 network that an IPv4-mapped one stands for, any other as it is."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        inside = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(inside or 0), network.prefixlen - 96))
    return network


def _parts_refusal(parts: SplitResult) -> str | None:
    if parts.scheme not in {"http", "https"}:
        return "must begin with http:// or https://"
    if "@" in parts.netloc:
        return "must not hold a user name or password"
    if not parts.hostname or not _NETLOC.fullmatch(parts.netloc):
        return _NO_HOST
    return None


def _port_refusal(port: int, ports: Ports) -> str | None:
    if any(first <= port <= last for first, last in ports):
        return None
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ports)
    return f"names port {port}; webhooks may reach {shown}"


def _host_refusal(host: str, opened: tuple[_Network, ...]) -> str | None:
    name = host.removesuffix(".")
    labels = name.split(".")
    if ":" in host or _NUMBER.fullmatch(labels[-1]):
        return _literal_refusal(host, opened)
    if len(name) > _MOST_IN_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        return _NO_HOST
    if labels[-1] == "localhost":
        if any(network.version == lo.version and network.overlaps(lo) for network in opened for lo in _LOOPBACK):
            return None
        return "names this machine itself, which webhooks may not reach"
    inside = len(labels) == 1 or any(name == top or name.endswith(f".{top}") for top in _INSIDE)
    if inside and not opened:
        return "names a host of an internal network, which webhooks may not reach"
    return None


def _literal_refusal(host: str, opened: tuple[_Network, ...]) -> str | None:
    # 2130706433, 0x7f.1, 0177.0.0.1 and 127.1 are 127.0.0.1 to some and something else to others: one spelling only.
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return "must write an IP address as four decimal numbers, or IPv6 in brackets"
    if not _may_reach(parsed, opened):
        return "names an internal address, which webhooks may not reach"
    return None


def _may_reach(address: _Address, opened: tuple[_Network, ...]) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return _is_in(address, opened) or not _is_in(address, _INTERNAL_V4)
    if address.scope_id is not None:
        return False
    if address.ipv4_mapped is not None:
        # To the operating system it is the IPv4 address: `::/0` does not open it. Needless, so never on its own.
        return _is_in(address.ipv4_mapped, opened)
    if _is_in(address, opened):
        # Who opens the way through NAT64 opens the internet behind it, not their own network.
        inside = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None
        return inside is None or _may_reach(inside, opened)
    tunnelled = (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP
    return address in _GLOBAL_V6 and not tunnelled and not _is_in(address, _INTERNAL_V6)


def _is_in(address: _Address, networks: tuple[_Network, ...]) -> bool:
    return any(address in network for network in networks)
