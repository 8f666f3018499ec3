"""Where may a callback go? Pure functions over URLs, names and addresses; nothing is looked up here.

A caller chooses the URL and this server opens the connection, so that without these rules a caller reaches what only
this server can: its own loopback, the network behind it, the cloud's metadata service. A URL is judged when it is
accepted, and each address again before it is connected to, for a name may mean another address by then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal

from yarl import URL

from stoker.errors import ConfigError, RequestError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Reach = Literal["public", "private", "special"]
"""Who answers at an address: somebody on the Internet; this host or its own network; nobody that a callback is for."""

MAX_URL_CHARS: Final = 2048
MAX_HOST_CHARS: Final = 253
PARAM: Final = "callback_url"

BLOCKED_PORTS: Final = frozenset(
    {
        *(1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109),
        *(110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530),
        *(531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045),
        *(4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080),
        *(6379, 11211),
    }
)
"""Ports where something other than HTTP listens and may take a POST for its own commands: those that browsers refuse
(fetch.spec.whatwg.org, "port blocking"), with Redis and memcached."""

LOCAL_SUFFIXES: Final = ("localhost", "localdomain", "local", "internal", "home.arpa", "svc", "metadata.goog")
"""Names that mean something inside a host, a network or a cloud only (RFC 6761, 6762, 8375, and ICANN's `internal`)."""

_PRIVATE: Final = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"),
    )
)
_SPECIAL: Final = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            *("100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::/32", "fd20:ce::254/128"),  # clouds' own services
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        ),
    )
)
_UNICAST_V6: Final = IPv6Network("2000::/3")  # all that IANA has given out so far
_NAT64: Final = IPv6Network("64:ff9b::/96")
_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_AUTHORITY: Final = re.compile(r"[A-Za-z]+://([^/?#]*)")


@dataclass(frozen=True, slots=True)
class Exceptions:
    """Hosts that the operator named: `names` in lower case, those with a leading dot stand for all below them."""

    names: tuple[str, ...]
    networks: tuple[Network, ...]

    def has_name(self, host: str) -> bool:
        """Whether a name, in lower case, is one of them."""
        return any(host.endswith(name) if name.startswith(".") else host == name for name in self.names)

    def has_address(self, address: Address) -> bool:
        """Whether an address is one of them, or one that stands for an IPv4 address which is."""
        return any(address in network or _plain(address) in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator permits.

    With `allow_private`, private addresses are permitted, special ones still not: the clouds' metadata services have
    such. A named exception permits its private addresses, a network whatever lies in it.
    """

    allow_private: bool
    exceptions: Exceptions

    def permits_name(self, host: str) -> bool:
        """Whether a name, in lower case, may be looked up: not one that means something locally only."""
        local = "." not in host or any(host == suffix or host.endswith(f".{suffix}") for suffix in LOCAL_SUFFIXES)
        return self.allow_private or not local or self.exceptions.has_name(host)

    def permits_address(self, host: str, address: Address) -> bool:
        """Whether an address may be connected to for `host`, the URL's name or address."""
        reach = reach_of(address)
        if reach == "public" or self.exceptions.has_address(address):
            return True
        return reach == "private" and (self.allow_private or self.exceptions.has_name(host))


@lru_cache(maxsize=16)
def parse_exceptions(entries: Sequence[str]) -> Exceptions:
    """The operator's exceptions, from a tuple.

    Args:
        entries: names (`hooks.example.internal`), all names below one (`*.example.internal`), addresses, or networks in
            CIDR form.

    Raises:
        ConfigError: an entry is none of these; it is named.
    """
    names: list[str] = []
    networks: list[Network] = []
    for entry in entries:
        text = entry.strip().lower().removesuffix(".")
        try:
            networks.append(ip_network(text, strict=False))
        except ValueError:
            if _NAME.fullmatch(text.removeprefix("*.")) is None or _ends_in_number(text):
                raise ConfigError(
                    f"allowed_hosts: {entry!r} is no host; write a name, `*.` and a name, an address, or a network such"
                    " as 10.0.0.0/8",
                    param="allowed_hosts",
                ) from None
            names.append(text.removeprefix("*"))
    return Exceptions(tuple(names), tuple(networks))


def reach_of(address: Address) -> Reach:
    """Who answers at an address; one that stands for an IPv4 address (mapped, NAT64) is judged as that one."""
    plain = _plain(address)
    if any(plain in network for network in _SPECIAL):
        return "special"
    if any(plain in network for network in _PRIVATE):
        return "private"
    if isinstance(plain, IPv6Address) and plain not in _UNICAST_V6:
        return "special"
    return "public" if plain.is_global else "special"  # a newer Python may know of more


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, if it does; never with a zone."""
    if isinstance(address, IPv4Address):
        return address
    bare = IPv6Address(int(address))
    if bare.ipv4_mapped is not None:
        return bare.ipv4_mapped
    return IPv4Address(int(bare) & 0xFFFF_FFFF) if bare in _NAT64 else bare


def read_url(text: str, rules: Rules) -> URL:
    """A callback's URL, normalised: its host is in lower case, in IDNA form, or one of the two usual address forms.

    Raises:
        RequestError: it is no URL that may be called; says why, with param `callback_url`.
    """
    if len(text) > MAX_URL_CHARS:
        raise _refused(f"is longer than {MAX_URL_CHARS} characters")
    # `isprintable` refuses control, format and surrogate characters, which parsers disagree about.
    if not text.isprintable() or " " in text or "\\" in text:
        raise _refused("has a space, a backslash or a control character; percent-encode it")
    authority = _AUTHORITY.match(text)
    if authority is None:
        raise _refused("is not absolute; write https:// and a host")
    if "@" in authority[1]:
        raise _refused("has a user or a password; put a token into its path or query")
    if "#" in text:
        raise _refused("has a fragment, which no server would see; leave out `#` and what follows")
    try:
        url = URL(text)
        host, port = url.raw_host, url.explicit_port
    except ValueError:  # also UnicodeError, of IDNA
        raise _refused("is no well-formed URL") from None
    if url.scheme not in {"http", "https"}:
        raise _refused("is neither https nor http")
    if port == 0 or port in BLOCKED_PORTS:
        raise _refused(f"has port {port}, which is not one of a web server")
    if not authority[1].isascii() and address_of(host or "") is not None:
        raise _unusual()  # IDNA takes digits of all scripts
    _check_host(host or "", rules)
    return url


def address_of(host: str) -> Address | None:
    """The address that a host of `read_url` is; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _check_host(host: str, rules: Rules) -> None:
    address = address_of(host)
    if address is not None:
        if "%" in host:
            raise _refused("has an address with a zone, which means something on this host only")
        if not rules.permits_address(host, address):
            raise _refused(f"goes to {host}, which is not a public address; {_remedy()}")
        return
    if len(host) > MAX_HOST_CHARS or _NAME.fullmatch(host) is None:
        raise _refused("has a host that is neither a name nor an address; write it without a dot at its end")
    # Resolvers take 2130706433, 0x7f.1 and 0177.0.0.1 for 127.0.0.1; WHATWG's rule for what is an IPv4 address.
    if _ends_in_number(host):
        raise _unusual()
    if not rules.permits_name(host):
        raise _refused(f"goes to {host}, which is not a public name; {_remedy()}")


def _ends_in_number(host: str) -> bool:
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _unusual() -> RequestError:
    return _refused("has an address in an unusual form; write it as four decimal numbers")


def _remedy() -> str:
    return "the operator may allow it in the configuration"


def _refused(problem: str) -> RequestError:
    return RequestError(f"{PARAM}: the URL {problem}", param=PARAM)
