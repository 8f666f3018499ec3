"""Whose address is it: trusted proxies, spoofed headers, and what counts as one caller."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.admission.addresses import address_group, client_address, parse_networks
from stoker.errors import ConfigError

PROXIES = parse_networks(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # nobody vouches for it
        ("203.0.113.9", ["10.0.0.1"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # what the client itself wrote stands on the left
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1, 192.0.2.7", "10.9.9.9"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # all are proxies: the farthest
        ("10.0.0.1", ["198.51.100.1, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1,"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [" 198.51.100.1:4711 "], "198.51.100.1"),
        ("10.0.0.1", ['"[2001:db8::1]:4711"'], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8:0:0::1"], "2001:db8::1"),
        ("10.0.0.1", ["fe80::1%eth0"], "fe80::1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("fd00::1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("fd00::1%eth0", ["198.51.100.1"], "198.51.100.1"),
        ("", ["198.51.100.1"], ""),
        ("testclient", ["198.51.100.1"], "testclient"),
        ("10.0.0.1", ["0x7f.1"], "10.0.0.1"),
        ("10.0.0.1", ["127.1"], "10.0.0.1"),
        ("10.0.0.1", ["1" * 5000], "10.0.0.1"),
    ],
)
def test_the_client_s_address(peer: str, forwarded: list[str], client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


@given(st.lists(st.text(), max_size=4), st.ip_addresses())
def test_without_trust_no_header_matters(forwarded: list[str], peer: ipaddress.IPv4Address) -> None:
    assert client_address(str(peer), forwarded, ()) == client_address(str(peer), [], ())


@given(
    st.lists(st.text(), max_size=4), st.ip_addresses(v=4).filter(lambda a: a not in PROXIES[0] and a not in PROXIES[1])
)
def test_a_client_behind_a_proxy_cannot_choose_its_address(written: list[str], client: ipaddress.IPv4Address) -> None:
    appended = [*written, str(client)]
    assert client_address("10.0.0.1", appended, PROXIES) == str(client)
    assert client_address("10.0.0.1", [",".join(appended)], PROXIES) == str(client)


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("[2001:db8::1]:80", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("203.0.113.9:80", "203.0.113.9"),
        ("", "local"),
        ("/run/stoker.sock", "local"),
    ],
)
def test_what_counts_as_one_caller(address: str, group: str) -> None:
    assert address_group(address) == group


def test_networks() -> None:
    assert [str(network) for network in parse_networks([" 10.0.0.0/8", "::1", "::ffff:10.0.0.0/104"])] == [
        "10.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
    ]
    assert parse_networks([]) == ()


@pytest.mark.parametrize(
    ("entry", "remedy"),
    [
        ("proxy.internal", "10.0.0.0/8"),
        ("10.0.0.5/8", "write 10.0.0.0/8"),
        ("10.0.0.0/40", "write"),
        ("*", "write"),
        ("", "write"),
    ],
)
def test_a_wrong_network_is_named(entry: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_networks(["10.0.0.0/8", entry])
    assert refused.value.param == "trusted_proxies"
    assert repr(entry) in refused.value.message
    assert remedy in refused.value.message
