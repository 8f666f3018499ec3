"""Where may a callback go: hostile URLs in every notation, good ones, and what an operator may permit."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import ConfigError, RequestError, Unsupported
from stoker.jobs.addresses import Rules, parse_exceptions, reach_of, read_url
from stoker.jobs.webhooks import WebhookPolicy, check_url

STRICT = Rules(allow_private=False, exceptions=parse_exceptions(()))
LAX = Rules(allow_private=True, exceptions=parse_exceptions(()))


def policy(*, secrets: tuple[bytes, ...] = (b"k" * 32,), private: bool = False, hosts: tuple[str, ...] = ()):
    return WebhookPolicy(secrets, 5, 1.0, 60.0, 5.0, private, hosts)


ADDRESSES = [
    "http://127.0.0.1/",
    "http://127.0.0.1:8080/",
    "http://127.255.255.254/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.170.2/v2/credentials",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://168.63.129.16/machine",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::FFFF:7F00:1]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:53aa:64c:0:7bff:80ff:fffe]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[100::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd20:ce::254]/",
    "http://[fe80::1]/",
    "http://[fe80::1%eth0]/",
    "http://[fe80::1%25eth0]/",
    "http://[2606:4700:4700::1111%25eth0]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[ff0e::1]/",
]
ODD_FORMS = [
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7F.0.0.1/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://0177.0.0.01/",
    "http://017700000001/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.1./",
    "http://127.0.0.1../",
    "http://0/",
    "http://0x/",
    "http://3232235777/",
    "http://134744072/",
    "http://8.8.8/",
    "http://256.0.0.1/",
    "http://1.1.1.1.1/",
    "http://00000000177.0.0.1/",
    "http://127.0.0.0x1/",
    "http://\uff14\uff12\uff15.\uff15\uff11\uff10.\uff14\uff12\uff15.\uff15\uff11\uff10/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "http://127。0。0。1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127%2e0%2e0%2e1/",
    "http://%31%32%37.0.0.1/",
    "http://[127.0.0.1]/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]evil/",
]
NAMES = [
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://localhost:8080/",
    "http://ⓛocalhost/",
    "http://\uff2c\uff2f\uff23\uff21\uff2c\uff28\uff2f\uff33\uff34/",
    "http://a.localhost/",
    "http://localhost.localdomain/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://METADATA.google.Internal/",
    "http://metadata.goog/",
    "http://instance-data.ec2.internal/",
    "http://printer.local/",
    "http://redis.default.svc.cluster.local/",
    "http://redis.default.svc/",
    "http://router.home.arpa/",
    "http://redis/",
    "http://metadata/",
]
FORMS = [
    "",
    "example.com",
    "//example.com/",
    "http:example.com/",
    "http:/example.com/",
    "http:///example.com/",
    "http://",
    "https://?x",
    "file:///etc/passwd",
    "ftp://example.com/",
    "gopher://example.com/_x",
    "unix:///run/docker.sock",
    "http+unix://%2Frun%2Fdocker.sock/",
    "javascript://example.com/%0aalert(1)",
    "data://example.com/",
    "ws://example.com/",
    "http://user@example.com/",
    "http://user:password@example.com/",
    "http://@example.com/",
    "http://:@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1%2f@example.com/",
    "http://example.com\uff20127.0.0.1/",
    "http://example.com\uff0f@127.0.0.1/",
    "http://example.com#@127.0.0.1/",
    "http://example.com/#fragment",
    "http://example.com/#",
    "http://example.com\\@127.0.0.1/",
    "http:\\\\127.0.0.1/",
    "http://exa mple.com/",
    " http://example.com/",
    "http://example.com/ HTTP/1.1",
    "http://example.com/\r\nHost: evil",
    "http://example.com/\tx",
    "http://exam\nple.com/",
    "http://example.com/\x00",
    "http://example.com/\x7f",
    "http://example\u200b.com/",
    "http://example.com/\u202e",
    "http://example.com/\ud800",
    "http://exa\u00admple.com/",
    "http://example..com/",
    "http://.example.com/",
    "http://example.com./",
    "http://-example.com/",
    "http://example.com;a/",
    "http://example.com,evil/",
    "http://exa*mple.com/",
    "http://exa%6dple.com/",
    "http://\u2488.com/",
    "http://xn--\u00e9.com/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 127 + "com/",
    "http://example.com/" + "a" * 2048,
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:99999/",
    "http://example.com:-1/",
    "http://example.com:port/",
    "http://example.com:80:90/",
    "http://example.com:22/",
    "http://example.com:25/",
    "http://example.com:6379/",
    "http://example.com:11211/",
    "http://example.com:6000/",
]
HOSTILE = [*ADDRESSES, *ODD_FORMS, *NAMES, *FORMS]
GOOD = [
    "https://example.com",
    "https://example.com/",
    "http://example.com/hook",
    "HTTPS://Hooks.Example.COM/Path?Query=1&b=%2F",
    "https://example.com:443/",
    "https://example.com:8443/hook",
    "https://example.com:65535/",
    "https://a.b.c.d.example/",
    "https://my_service.example.com/",
    "https://xn--bcher-kva.example/",
    "https://bücher.example/straße?ü=ö",
    "https://例え.テスト/",
    "https://1e100.net/",
    "https://127.0.0.1.nip.io/",  # a name; its address is judged when it is known
    "https://localhost.example.com/",
    "https://internal.example.com/",
    "https://8.8.8.8/",
    "https://1.1.1.1:8443/x",
    "https://172.15.255.255/",
    "https://172.32.0.1/",
    "https://100.63.255.255/",
    "https://100.128.0.1/",
    "https://[2606:4700:4700::1111]/",
    "https://[2606:4700:4700::1111]:8443/x",
    "https://[::ffff:8.8.8.8]/",
    "https://[64:ff9b::8.8.8.8]/",
    "https://example.com/?url=http://127.0.0.1/",
    "https://example.com/a@b",
    "https://example.com/?user@host",
]


def test_the_tables_are_large() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 60
    assert len(set(GOOD)) == len(GOOD) >= 20


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_is_refused(url: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_url(url, policy())
    assert refused.value.param == "callback_url"
    assert refused.value.status == 400
    assert refused.value.message.startswith("callback_url: ")
    refused.value.message.encode()  # what cannot be written is not repeated


@pytest.mark.parametrize("url", GOOD)
def test_a_good_url_is_accepted(url: str) -> None:
    check_url(url, policy())


@pytest.mark.parametrize("url", [*ODD_FORMS, *FORMS])
def test_a_form_that_parsers_disagree_about_is_refused_whatever_is_allowed(url: str) -> None:
    with pytest.raises(RequestError):
        check_url(url, policy(private=True))


def test_the_parsed_host_is_the_one_that_was_judged() -> None:
    assert read_url("https://BÜCHER.example/x", STRICT).raw_host == "xn--bcher-kva.example"
    assert read_url("HTTPS://Example.COM:443/x", STRICT).host == "example.com"
    assert read_url("https://[2606:4700:4700:0::1111]/", STRICT).raw_host == "2606:4700:4700::1111"


NOT_GLOBAL_V4 = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/29"),
    *("192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
]
NOT_GLOBAL_V6 = ["::/127", "100::/64", "2001:2::/48", "2001:db8::/32", "2001:10::/28", "fc00::/7", "fe80::/10"]
V4 = st.sampled_from(NOT_GLOBAL_V4).flatmap(lambda network: st.ip_addresses(v=4, network=network))
V6 = st.sampled_from(NOT_GLOBAL_V6).flatmap(lambda network: st.ip_addresses(v=6, network=network))
ANY = st.ip_addresses()


def v4_notations(address: IPv4Address) -> list[str]:
    """Every way to write an IPv4 address that some resolver or library takes."""
    number, octets = int(address), address.packed
    high, low = number >> 16, number & 0xFFFF
    wide = str(address).translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789"})
    return [
        str(address),
        f"{address}.",
        str(number),
        hex(number),
        f"0X{number:08X}",
        f"0{number:o}",
        ".".join(f"0{octet:o}" for octet in octets),
        ".".join(f"{octet:03}" for octet in octets) + ".",
        ".".join(map(hex, octets)),
        f"{octets[0]}.{number & 0xFFFFFF}",
        f"{octets[0]}.{octets[1]}.{low}",
        f"{hex(octets[0])}.0{octets[1]:o}.{low}",
        wide,
        str(address).replace(".", "。"),
        str(address).replace(".", "%2e"),
        "".join(f"%{ord(character):02x}" for character in str(address)),
        f"[::ffff:{address}]",
        f"[::FFFF:{high:X}:{low:X}]",
        f"[0:0:0:0:0:ffff:{high:04x}:{low:04x}]",
        f"[::{address}]",
        f"[::ffff:0:{address}]",
        f"[64:ff9b::{address}]",
        f"[64:ff9b:1::{address}]",
        f"[2002:{high:x}:{low:x}::1]",
        f"[{address}]",
    ]


def v6_notations(address: IPv6Address) -> list[str]:
    """The ways to write an IPv6 address, with and without a zone."""
    forms = [address.compressed, address.exploded, address.compressed.upper(), address.exploded.upper()]
    return [*(f"[{form}]" for form in forms), f"[{address}%25eth0]", f"[{address}%1]", str(address)]


@given(V4 | V6 | ANY.filter(lambda address: not address.is_global), st.sampled_from(["http", "https"]))
def test_what_is_not_global_is_refused_in_every_notation(address: IPv4Address | IPv6Address, scheme: str) -> None:
    assert not address.is_global
    forms = v4_notations(address) if isinstance(address, IPv4Address) else v6_notations(address)
    for form in forms:
        for url in (f"{scheme}://{form}/", f"{scheme}://{form}:8080/hook?a=b"):
            with pytest.raises(RequestError):
                read_url(url, STRICT)


@given(V4 | V6 | ANY)
def test_what_is_not_global_is_refused_after_a_lookup(address: IPv4Address | IPv6Address) -> None:
    if not address.is_global:
        assert not STRICT.permits_address("hooks.example.com", address)
    if isinstance(address, IPv4Address):
        mapped, translated = IPv6Address(f"::ffff:{address}"), IPv6Address(f"64:ff9b::{address}")
        assert reach_of(mapped) == reach_of(translated) == reach_of(address)


@given(st.sampled_from(["1.0.0.0/8", "8.0.0.0/8", "93.0.0.0/8", "2606:4700::/32"]).flatmap(
    lambda network: st.ip_addresses(network=network)
))  # fmt: skip
def test_public_addresses_are_permitted(address: IPv4Address | IPv6Address) -> None:
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    read_url(f"https://{host}/", STRICT)
    assert STRICT.permits_address("hooks.example.com", address)


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "https://127.0.0.1", "http://a@"]))
def test_any_text_is_accepted_or_refused_and_nothing_else(text: str, prefix: str) -> None:
    try:
        url = read_url(prefix + text, STRICT)
    except RequestError as error:
        assert error.param == "callback_url"
    else:
        assert read_url(str(url), STRICT) == url  # what is sent to is what was judged


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("8.8.8.8", "public"),
        ("127.0.0.1", "private"),
        ("10.1.2.3", "private"),
        ("100.64.0.1", "private"),
        ("::1", "private"),
        ("fd00::1", "private"),
        ("::ffff:192.168.0.1", "private"),
        ("64:ff9b::10.0.0.1", "private"),
        ("169.254.169.254", "special"),
        ("100.100.100.200", "special"),
        ("168.63.129.16", "special"),
        ("fd00:ec2::254", "special"),
        ("fe80::1%eth0", "special"),
        ("0.0.0.0", "special"),
        ("224.0.0.1", "special"),
        ("2002:808:808::1", "special"),
        ("::8.8.8.8", "special"),
        ("2001:4860:4860::8888", "public"),
        ("64:ff9b::8.8.8.8", "public"),
    ],
)
def test_who_answers_at_an_address(address: str, reach: str) -> None:
    assert reach_of(ipaddress.ip_address(address)) == reach


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/", "http://[::1]/", "http://10.0.0.1/", "http://redis/"])
def test_private_places_are_accepted_where_they_are_allowed(url: str) -> None:
    check_url(url, policy(private=True))


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://224.0.0.1/"]
)
def test_metadata_services_are_refused_even_where_private_places_are_allowed(url: str) -> None:
    with pytest.raises(RequestError):
        check_url(url, policy(private=True))
    check_url(url, policy(hosts=("169.254.169.254", "fd00:ec2::/32", "100.100.100.200", "224.0.0.0/4")))


def test_an_exception_holds_for_what_it_names_and_nothing_else() -> None:
    named = policy(hosts=("Hooks.Internal.", "*.jobs.local", "10.1.0.0/16", "fd12::1"))
    for url in ("http://hooks.internal/", "http://a.b.jobs.local/", "http://10.1.2.3/", "http://[fd12::1]/"):
        check_url(url, named)
    for url in ("http://x.hooks.internal/", "http://jobs.local/", "http://evil-jobs.local/", "http://10.2.0.1/"):
        with pytest.raises(RequestError):
            check_url(url, named)
    private, metadata = ipaddress.ip_address("192.168.0.9"), ipaddress.ip_address("169.254.169.254")
    assert named.rules.permits_address("hooks.internal", private)
    assert not named.rules.permits_address("hooks.internal", metadata)
    assert not named.rules.permits_address("other.example", private)
    assert named.rules.permits_address("other.example", ipaddress.ip_address("::ffff:10.1.2.3"))


@pytest.mark.parametrize("entry", ["", "*", "http://x.example", "10.0.0.0/40", "a b", "*.", "0x7f.1", "x.example:80"])
def test_a_wrong_exception_is_named(entry: str) -> None:
    with pytest.raises(ConfigError) as refused:
        policy(hosts=("fine.example", entry))
    assert repr(entry) in refused.value.message
    assert refused.value.param == "allowed_hosts"


def test_without_a_secret_no_callback_is_accepted() -> None:
    with pytest.raises(Unsupported) as refused:
        check_url("https://example.com/", policy(secrets=()))
    assert refused.value.param == "callback_url"
    assert "operator" in refused.value.message


def test_private_is_allowed_only_by_configuration() -> None:
    assert LAX.permits_address("x.example", ipaddress.ip_address("10.0.0.1"))
    assert not STRICT.permits_address("x.example", ipaddress.ip_address("10.0.0.1"))
