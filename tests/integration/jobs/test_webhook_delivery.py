"""Deliveries over real sockets: what arrives, what each answer and each fault comes to, and what the log tells."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import structlog
from hook_server import KEY, HookServer, Names, answer, endless, raw, reset, silence, slow_body

from stoker.jobs import sender as sender_module
from stoker.jobs.sender import DRAIN_S, MAX_ANSWER_BYTES, Sender
from stoker.jobs.signing import verify

BODY = b'{"type":"job.succeeded","data":{"id":"job_1"}}'
NEW_KEY = b"a new secret of thirty-two bytes"


async def test_a_webhook_arrives_signed_and_whole(hook: HookServer, make_policy) -> None:
    delivery = await Sender(make_policy()).deliver(f"{hook.url}/hook?a=b", "job_1", BODY)
    assert (delivery.outcome, delivery.status, delivery.error) == ("delivered", 200, None)
    assert delivery.duration_s > 0
    (seen,) = hook.seen
    assert (seen.method, seen.target, seen.body) == ("POST", "/hook?a=b", BODY)
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["user-agent"].startswith("stoker/")
    assert seen.headers["webhook-id"] == "job_1"
    assert not {"cookie", "authorization"} & set(seen.headers)
    assert verify([KEY], seen.headers, seen.body, now=time.time())
    assert not verify([NEW_KEY], seen.headers, seen.body, now=time.time())


async def test_both_secrets_sign_while_they_are_changed(hook: HookServer, make_policy) -> None:
    await Sender(make_policy(secrets=(NEW_KEY, KEY))).deliver(hook.url, "job_1", BODY)
    for key in (NEW_KEY, KEY):
        assert verify([key], hook.seen[0].headers, BODY, now=time.time())


async def test_each_attempt_has_the_message_s_id_and_its_own_time(hook: HookServer, make_policy) -> None:
    times = iter([1000.0, 1000.0, 2000.9, 2000.9])
    sender = Sender(make_policy(), clock=lambda: next(times))
    for _ in range(2):
        await sender.deliver(hook.url, "job_1", BODY)
    assert [seen.headers["webhook-id"] for seen in hook.seen] == ["job_1", "job_1"]
    assert [seen.headers["webhook-timestamp"] for seen in hook.seen] == ["1000", "2000"]


async def test_a_large_body_arrives_whole(hook: HookServer, make_policy) -> None:
    body = b'"' + b"x" * (5 * 1024 * 1024) + b'"'
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", body)
    assert delivery.outcome == "delivered"
    assert hook.seen[0].body == body
    assert verify([KEY], hook.seen[0].headers, body, now=time.time())


@pytest.mark.parametrize(
    ("status", "headers", "outcome", "retry_after"),
    [
        (204, {}, "delivered", None),
        (410, {"retry_after": "5"}, "gone", None),
        (429, {"retry_after": "17"}, "failed", 17.0),
        (429, {}, "failed", None),
        (503, {"retry_after": "3"}, "failed", 3.0),
        (503, {"retry_after": "nonsense"}, "failed", None),
        (500, {"retry_after": "3"}, "failed", None),
        (404, {}, "failed", None),
        (304, {}, "failed", None),
    ],
)
async def test_an_answer_is_judged(hook: HookServer, make_policy, status, headers, outcome, retry_after):  # noqa: PLR0917
    hook.script.append(answer(status, **headers))
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status, delivery.retry_after) == (outcome, status, retry_after)
    assert (delivery.error is None) == (outcome == "delivered")


async def test_a_silent_receiver_costs_the_timeout_and_no_more(hook: HookServer, make_policy) -> None:
    hook.script.append(silence)
    delivery = await Sender(make_policy(timeout_s=0.3)).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("failed", None)
    assert "0.3 s" in (delivery.error or "")
    assert 0.25 < delivery.duration_s < 20


async def test_a_body_that_never_ends_coming_does_not_change_the_verdict(hook: HookServer, make_policy) -> None:
    hook.script.append(slow_body)
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("delivered", 200)
    assert DRAIN_S * 0.9 < delivery.duration_s < 20  # and not the policy's 30 s


async def test_the_timeout_bounds_the_body_too(hook: HookServer, make_policy, monkeypatch) -> None:
    monkeypatch.setattr(sender_module, "DRAIN_S", 60.0)
    hook.script.append(slow_body)
    begun = time.monotonic()
    await Sender(make_policy(timeout_s=0.5)).deliver(hook.url, "job_1", BODY)
    assert time.monotonic() - begun < 20


async def test_an_endless_body_is_cut_off(hook: HookServer, make_policy) -> None:
    written: list[int] = []
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    hook.script.append(endless(head, b"x" * 65536, written))
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
    assert delivery.outcome == "delivered"
    async with asyncio.timeout(20):
        while not written:
            await asyncio.sleep(0.01)
    assert MAX_ANSWER_BYTES <= written[0] < 32 * 1024 * 1024  # what the kernel's buffers took


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"y" * 1000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nx-long: ", b"y" * 65536),
        (b"", b"z" * 65536),
    ],
)
async def test_an_endless_head_is_cut_off(hook: HookServer, make_policy, head: bytes, piece: bytes) -> None:
    written: list[int] = []
    hook.script.append(endless(head, piece, written))
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("failed", None)
    async with asyncio.timeout(20):
        while not written:
            await asyncio.sleep(0.01)
    assert written[0] < 32 * 1024 * 1024


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (reset, "broke"),
        (raw(b""), "broke"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "not HTTP"),
        (raw(b"HTTP/1.1 abc Nonsense\r\n\r\n"), "not HTTP"),
        (raw(b"HTTP/1.1 200"), ""),
    ],
)
async def test_a_broken_answer_is_a_failure_in_words(hook: HookServer, make_policy, act, words: str) -> None:
    hook.script.append(act)
    delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("failed", None)
    assert words in (delivery.error or "")


async def test_a_compressed_answer_is_neither_asked_for_nor_needed(hook: HookServer, make_policy) -> None:
    hook.script.append(answer(200, b"no gzip at all", content_encoding="gzip"))
    assert (await Sender(make_policy()).deliver(hook.url, "job_1", BODY)).outcome == "delivered"
    assert hook.seen[0].headers["accept-encoding"] == "identity"


async def test_nobody_listens(make_policy) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else takes it, and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        delivery = await Sender(make_policy()).deliver(url, "job_1", BODY)
    assert delivery.outcome == "failed"
    assert delivery.error == "no connection: Connection refused"


async def test_a_name_without_an_address(make_policy) -> None:
    delivery = await Sender(make_policy(), lookup=Names({})).deliver("http://hooks.example/", "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("failed", None)
    assert delivery.error == "hooks.example has no address: Name or service not known"


async def test_a_slow_lookup_is_bounded_by_the_timeout(make_policy) -> None:
    async def never(_host: str, _port: int) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    delivery = await Sender(make_policy(timeout_s=0.1), lookup=never).deliver("http://hooks.example/", "job_1", BODY)
    assert "0.1 s" in (delivery.error or "")


async def test_the_next_address_is_tried_when_one_does_not_answer(hook: HookServer, make_policy) -> None:
    names = Names({"hooks.example": [["127.0.0.3", "127.0.0.1"]]})
    delivery = await Sender(make_policy(), lookup=names).deliver(hook.at("hooks.example"), "job_1", BODY)
    assert delivery.outcome == "delivered"
    assert hook.seen[0].headers["host"] == f"hooks.example:{hook.port}"


async def test_the_system_s_own_lookup_serves(hook: HookServer, make_policy) -> None:
    delivery = await Sender(make_policy()).deliver(hook.at("localhost"), "job_1", BODY)
    assert delivery.outcome == "delivered"


async def test_cookies_are_not_kept(hook: HookServer, make_policy) -> None:
    hook.script.append(answer(200, set_cookie="a=b; Path=/"))
    sender = Sender(make_policy(), lookup=Names({"hooks.example": [["127.0.0.1"]]}))
    for _ in range(2):
        await sender.deliver(hook.at("hooks.example"), "job_1", BODY)
    assert "cookie" not in hook.seen[1].headers


async def test_the_environment_s_proxies_and_passwords_are_not_used(
    hook: HookServer, make_policy, monkeypatch, tmp_path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with HookServer().running() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        delivery = await Sender(make_policy()).deliver(hook.url, "job_1", BODY)
        assert delivery.outcome == "delivered"
        assert proxy.connections == 0
    assert "authorization" not in hook.seen[0].headers


async def test_tls_with_a_certificate_that_is_trusted(tls_hook: HookServer, certificate, make_policy) -> None:
    sender = Sender(make_policy(), tls=certificate.trusted(), lookup=Names({"hooks.example": [["127.0.0.1"]]}))
    for url in (tls_hook.url, tls_hook.at("hooks.example")):
        delivery = await sender.deliver(url, "job_1", BODY)
        assert (delivery.outcome, delivery.error) == ("delivered", None)


async def test_a_certificate_of_an_unknown_authority_is_not_accepted(tls_hook: HookServer, make_policy) -> None:
    delivery = await Sender(make_policy()).deliver(tls_hook.url, "job_1", BODY)
    assert delivery.outcome == "failed"
    assert "certificate is not accepted: self-signed" in (delivery.error or "").replace("self signed", "self-signed")
    assert not tls_hook.seen


async def test_a_certificate_for_another_name_is_not_accepted(tls_hook: HookServer, certificate, make_policy) -> None:
    names = Names({"other.example": [["127.0.0.1"]]})
    sender = Sender(make_policy(), tls=certificate.trusted(), lookup=names)
    delivery = await sender.deliver(tls_hook.at("other.example"), "job_1", BODY)
    assert delivery.outcome == "failed"
    assert "certificate is not accepted" in (delivery.error or "")
    assert not tls_hook.seen


async def test_a_receiver_without_tls(make_policy) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        delivery = await Sender(make_policy()).deliver(f"https://127.0.0.1:{port}/", "job_1", BODY)
    assert delivery.outcome == "failed"
    assert "no TLS connection" in (delivery.error or "")


async def test_a_url_that_is_not_allowed_any_more_is_refused_without_a_connection(hook: HookServer, make_policy):
    delivery = await Sender(make_policy(allow_private=False)).deliver(hook.url, "job_1", BODY)
    assert (delivery.outcome, delivery.status) == ("refused", None)
    assert hook.connections == 0


async def test_without_a_secret_nothing_is_sent(hook: HookServer, make_policy) -> None:
    with pytest.raises(ValueError, match="signature"):
        await Sender(make_policy(secrets=())).deliver(hook.url, "job_1", BODY)
    assert hook.connections == 0


async def test_so_many_at_once_and_no_more(hook: HookServer, make_policy) -> None:
    gate = asyncio.Event()

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(200)(reader, writer)

    hook.script.extend([held] * 12)
    names = Names({f"{letter}.example": [["127.0.0.1"]] for letter in "abc"})
    sender = Sender(make_policy(), lookup=names, at_once=5, per_host=2)
    sent = [asyncio.create_task(sender.deliver(hook.at(f"{host}.example"), "job_1", BODY)) for host in "abcabcabcabc"]
    async with asyncio.timeout(20):
        while hook.at_once < 5:
            await asyncio.sleep(0.01)
    gate.set()
    assert {delivery.outcome for delivery in await asyncio.gather(*sent)} == {"delivered"}
    assert hook.most_at_once == 5
    assert not sender._places._hosts
    assert not sender._places._users


async def test_a_slow_host_does_not_hold_up_the_others(hook: HookServer, make_policy) -> None:
    async with HookServer().running() as slow:
        slow.script.extend([silence] * 2)
        names = Names({"slow.example": [["127.0.0.1"]], "hooks.example": [["127.0.0.1"]]})
        sender = Sender(make_policy(), lookup=names, at_once=3, per_host=2)
        waiting = [asyncio.create_task(sender.deliver(slow.at("slow.example"), "job_1", BODY)) for _ in range(9)]
        async with asyncio.timeout(20):
            while slow.at_once < 2:
                await asyncio.sleep(0.01)
            assert (await sender.deliver(hook.at("hooks.example"), "job_2", BODY)).outcome == "delivered"
        assert slow.most_at_once == 2
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not sender._places._users  # a cancelled delivery gives its place back
        assert (await sender.deliver(hook.at("slow.example"), "job_3", BODY)).outcome == "delivered"


async def test_neither_secrets_nor_paths_nor_bodies_are_logged(hook: HookServer, make_policy) -> None:
    hook.script.extend([answer(500, b"what the receiver says"), reset, answer(200)])
    sender = Sender(make_policy(secrets=(NEW_KEY, KEY)), lookup=Names({"hooks.example": [["127.0.0.1"]]}))
    url = hook.at("hooks.example", "/hook/path-token?key=query-token")
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            await sender.deliver(url, "job_1", BODY)
        await sender.deliver("http://169.254.169.254/path-token?key=query-token", "job_1", BODY)
    assert [(line["event"], line["outcome"]) for line in lines] == [
        ("webhook", "failed"),
        ("webhook", "failed"),
        ("webhook", "delivered"),
        ("webhook", "refused"),
    ]
    assert [line["log_level"] for line in lines] == ["warning", "warning", "info", "warning"]
    assert lines[0]["host"] == "hooks.example"
    text = repr(lines)
    for hidden in ("path-token", "query-token", "secret of", "job.succeeded", "receiver says", "v1,"):
        assert hidden not in text
