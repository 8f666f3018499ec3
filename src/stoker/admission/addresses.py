"""From which address does a request come, and with which others does that count as one? Pure functions.

`X-Forwarded-For` is what anybody may write, so it is read only as far as hops that the operator trusts vouch for it:
from the right, where each proxy appends the address that it saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from stoker.errors import ConfigError

LOCAL = "local"
"""The group of peers without an address: those that come by a Unix socket."""
REMEMBERED = 4096
"""Texts whose meaning is kept: a caller comes again, and is looked at three times a request."""
IPV6_GROUP_BITS = 64
"""One subscriber's network: RFC 6177 gives end sites a /64 or more, and a host picks addresses in it at will."""
_MAPPED_BITS = 96  # of ::ffff:0:0/96, RFC 4291 section 2.5.5.2

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address of the client.

    Args:
        peer: address of the connection's other end; empty for a Unix socket.
        forwarded: the values of all X-Forwarded-For headers, in their order; each may be a list with commas.
        trusted: proxies that are believed. A trusted hop's predecessor is believed to be what the hop says; the first
            hop that is not trusted is the client. What is no address ends the walk at the hop that said it.

    Returns:
        The address in its shortest form, without port or zone; or `peer` itself when that is no address.
    """
    current = _parse(peer)
    if current is None:
        return peer
    for entry in _from_the_right(forwarded):
        if not is_trusted(current, trusted):
            break
        hop = _parse(entry)
        if hop is None:
            break
        current = hop
    return str(current)


def is_trusted(address: Address, trusted: Iterable[Network]) -> bool:
    """Whether the address lies in one of the networks."""
    return any(address in network for network in trusted)


def parse_networks(entries: Iterable[str]) -> tuple[Network, ...]:
    """The networks of `trusted_proxies`: addresses or networks in CIDR form; raises ConfigError naming the entry."""
    return tuple(map(_network, entries))


@lru_cache(REMEMBERED)
def address_group(address: str) -> str:
    """What counts as one caller: an IPv4 address, an IPv6 /64, or `local` for whatever has no address."""
    parsed = _parse(address)
    if parsed is None:
        return LOCAL
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(IPv6Network((parsed, IPV6_GROUP_BITS), strict=False))


def is_loopback(host: str) -> bool:
    """Whether only this machine can come from, or reach, an address or name."""
    parsed = _parse(host)
    return host == "localhost" or (parsed is not None and parsed.is_loopback)


def _from_the_right(forwarded: Sequence[str]) -> Iterator[str]:
    for value in reversed(forwarded):
        yield from reversed(value.split(","))


@lru_cache(REMEMBERED)
def _parse(text: str) -> Address | None:
    """An address as it stands in headers: perhaps with quotes, brackets, a port or a zone; IPv4-mapped ones as IPv4."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _network(entry: str) -> Network:
    try:
        network = ip_network(entry.strip())
    except ValueError:
        raise ConfigError(
            f"trusted_proxies: {entry!r} is neither an address nor a network{_meant(entry)}", param="trusted_proxies"
        ) from None
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def _meant(entry: str) -> str:
    """The remedy: the network around an address with a mask, else an example."""
    try:
        return f"; write {ip_network(entry.strip(), strict=False)} or the single address"
    except ValueError:
        return "; write for example 10.1.2.3 or 10.0.0.0/8"
