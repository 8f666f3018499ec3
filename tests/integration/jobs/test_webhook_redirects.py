"""Redirects and names that change their minds: every hop is judged, and nothing unjudged is connected to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest
import structlog
from hook_server import KEY, HookServer, Names, answer

from stoker.jobs.sender import MAX_REDIRECTS, Sender
from stoker.jobs.signing import verify

BODY = b'{"type":"job.succeeded"}'
ONLY_FIRST = {"allow_private": False, "allowed_hosts": ("127.0.0.1",)}


@pytest.fixture
async def trap() -> AsyncIterator[HookServer]:
    """A server that nothing may reach."""
    async with HookServer().running() as server:
        yield server
        assert server.connections == 0


@pytest.fixture
async def twins() -> AsyncIterator[tuple[HookServer, HookServer]]:
    """Two servers on one port, at 127.0.0.1 and 127.0.0.2; nothing may reach the second."""
    async with contextlib.AsyncExitStack() as stack:
        good = await stack.enter_async_context(HookServer().running())
        bad = await stack.enter_async_context(HookServer(host="127.0.0.2", port=good.port).running())
        yield good, bad
        assert bad.connections == 0


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_that_keeps_the_method_is_followed(hook: HookServer, make_policy, status: int) -> None:
    async with HookServer().running() as second:
        hook.script.append(answer(status, location=f"{second.url}/new?x=y"))
        delivery = await Sender(make_policy()).deliver(f"{hook.url}/old", "job_1", BODY)
        assert (delivery.outcome, delivery.status) == ("delivered", 200)
        (seen,) = second.seen
    assert (seen.method, seen.target, seen.body) == ("POST", "/new?x=y", BODY)
    assert seen.headers["host"] == f"127.0.0.1:{second.port}"
    assert verify([KEY], seen.headers, seen.body, now=time.time())


@pytest.mark.parametrize("location", ["/new", "new", "//127.0.0.1:{port}/new", "../new", "?x=/new"])
async def test_a_relative_redirect_is_followed(hook: HookServer, make_policy, location: str) -> None:
    hook.script.append(answer(307, location=location.format(port=hook.port)))
    delivery = await Sender(make_policy()).deliver(f"{hook.url}/old", "job_1", BODY)
    assert delivery.outcome == "delivered"
    assert hook.seen[1].target.endswith("/new")


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_that_loses_the_method_is_a_failure(hook: HookServer, trap, make_policy, status: int) -> None:
    hook.script.append(answer(status, location=trap.url))
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("failed", status)
    assert "307 or 308" in (delivery.error or "")


async def test_three_redirects_are_followed_and_no_fourth(hook: HookServer, make_policy) -> None:
    assert MAX_REDIRECTS == 3
    sender = Sender(make_policy())
    hook.script.extend([answer(307, location="/again")] * 3)
    assert (await sender.deliver(hook.url, "job_1", BODY)).outcome == "delivered"
    assert len(hook.seen) == 4
    hook.script.extend([answer(308, location="/again")] * 9)
    delivery = await sender.deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("failed", 308)
    assert "more than 3 redirects" in (delivery.error or "")
    assert len(hook.seen) == 8


async def test_the_timeout_holds_for_all_hops_together(hook: HookServer, make_policy) -> None:
    async def slow(reader, writer) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read()
        await answer(307, location="/again")(reader, writer)

    hook.script.extend([slow] * 4)
    delivery = await Sender(make_policy(timeout_s=0.7)).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("failed", None)
    assert "0.7 s" in (delivery.error or "")


@pytest.mark.parametrize("headers", [{}, {"location": ""}])
async def test_a_redirect_to_nowhere_is_a_failure(hook: HookServer, make_policy, headers: dict[str, str]) -> None:
    hook.script.append(answer(307, **headers))
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("failed", 307)
    assert len(hook.seen) == 1


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/iam/",
        "//169.254.169.254/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
        "http://metadata.google.internal/",
        "http://127.0.0.2:{port}/",
        "http://localhost:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.2]:{port}/",
        "http://user:password@127.0.0.1:{port}/",
        "http://@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/#fragment",
        "http://127.0.0.1:{port}\\@evil/",
        "http:\\\\127.0.0.2:{port}",
        "http://127.0.0.1:22/",
        "http://127.0.0.1:6379/",
        "ftp://127.0.0.1:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/_x",
        "https:127.0.0.1:{port}",
        "javascript:alert(1)",
        "http://",
        "http://127.0.0.1:99999/",
    ],
)
async def test_a_hostile_redirect_is_refused(hook: HookServer, trap, make_policy, location: str) -> None:
    hook.script.append(answer(307, location=location.format(port=trap.port)))
    delivery = await Sender(make_policy(**ONLY_FIRST)).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("refused", 307)
    assert (delivery.error or "").startswith("the receiver redirects, and the URL ")
    assert len(hook.seen) == 1


async def test_a_public_name_cannot_redirect_to_loopback(hook: HookServer, trap, make_policy) -> None:
    # The receiver's own name is permitted; the address that it has is not, under any other name.
    policy = make_policy(allow_private=False, allowed_hosts=("hooks.example",))
    names = Names({"hooks.example": [["127.0.0.1"]], "evil.example": [["127.0.0.1"]]})
    for place in (trap.url, trap.at("evil.example")):
        hook.script.append(answer(308, location=place))
        delivery = await Sender(policy, lookup=names).deliver(hook.at("hooks.example"), "job_1", BODY)
        assert delivery.outcome == "refused"


async def test_https_is_never_left(tls_hook: HookServer, trap, certificate, make_policy) -> None:
    tls_hook.script.append(answer(307, location=trap.url))
    delivery = await Sender(make_policy(), tls=certificate.trusted()).deliver(tls_hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("refused", 307)
    assert "from https to http" in (delivery.error or "")


async def test_http_may_redirect_to_https(hook: HookServer, tls_hook, certificate, make_policy) -> None:
    hook.script.append(answer(308, location=tls_hook.at("second.example")))
    sender = Sender(make_policy(), tls=certificate.trusted(), lookup=Names({"second.example": [["127.0.0.1"]]}))
    assert (await sender.deliver(hook.url, "job_1", BODY)).outcome == "delivered"
    assert len(tls_hook.seen) == 1


async def test_a_redirect_s_certificate_is_checked(hook: HookServer, tls_hook, make_policy) -> None:
    hook.script.append(answer(308, location=tls_hook.url))
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
    assert "certificate" in (delivery.error or "")
    assert not tls_hook.seen


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to(twins, make_policy, monkeypatch) -> None:
    good, _bad = twins
    asked_system: list[object] = []
    system = socket.getaddrinfo

    def spy(host, *rest, **options):
        asked_system.append(host)
        return system(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", spy)
    names = Names({"hooks.example": [["127.0.0.1"], ["127.0.0.2"]]})
    sender = Sender(make_policy(**ONLY_FIRST), lookup=names)
    assert (await sender.deliver(good.at("hooks.example"), "job_1", BODY)).outcome == "delivered"
    assert names.asked == ["hooks.example"]  # once: a second answer could be another
    assert "hooks.example" not in asked_system
    with structlog.testing.capture_logs() as lines:
        delivery = await sender.deliver(good.at("hooks.example"), "job_1", BODY)
    assert delivery.outcome == "refused"
    assert "127.0.0.2" not in (delivery.error or "")  # the caller learns nothing of the network
    assert lines[0]["addresses"] == ["127.0.0.2"]  # the operator does
    assert len(good.seen) == 1


async def test_a_name_that_changes_between_hops_is_refused(twins, make_policy) -> None:
    good, _bad = twins
    good.script.append(answer(307, location=good.at("hooks.example", "/again")))
    names = Names({"hooks.example": [["127.0.0.1"], ["127.0.0.2"]]})
    delivery = await Sender(make_policy(**ONLY_FIRST), lookup=names).deliver(good.at("hooks.example"), "job_1", BODY)
    assert delivery.outcome == "refused"
    assert names.asked == ["hooks.example"] * 2


@pytest.mark.parametrize(
    "addresses", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["fe80::1%1", "127.0.0.1"]]
)
async def test_of_several_addresses_only_permitted_ones_are_tried(twins, make_policy, addresses: list[str]) -> None:
    good, _bad = twins
    sender = Sender(make_policy(**ONLY_FIRST), lookup=Names({"hooks.example": [addresses]}))
    assert (await sender.deliver(good.at("hooks.example"), "job_1", BODY)).outcome == "delivered"


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "fe80::1%1", "0.0.0.0", "::"],
)
async def test_a_name_that_means_a_metadata_service_is_refused_even_with_private_ones_allowed(
    make_policy, address: str
) -> None:
    sender = Sender(make_policy(), lookup=Names({"hooks.example": [[address]]}))
    delivery = await sender.deliver("http://hooks.example/", "job_1", BODY)
    assert delivery.outcome == "refused"


@pytest.mark.parametrize("found", [[], ["nonsense"], [""]])
async def test_a_lookup_that_finds_nothing_of_use(make_policy, found: list[str]) -> None:
    sender = Sender(make_policy(), lookup=Names({"hooks.example": [found]}))
    assert (await sender.deliver("http://hooks.example/", "job_1", BODY)).outcome == "refused"
