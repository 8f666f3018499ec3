"""Connections of clients that send too much, too slowly or nonsense, that read nothing, or that leave at any moment."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tests.running import FakeModel, Stoker

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
ROUTE = b"/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[tuple[Stoker, FakeModel]]:
    directory = tmp_path_factory.mktemp("connections")
    model = FakeModel(directory, model_path, plan={"slots": 2, "context": 1024})
    timeouts = {"body": 1.0, "unread": 1.0, "keep_alive": 2.0}
    limits = {"bodies_mib": 8, "connections": 100}
    with Stoker(directory, {"models": [model.settings], "timeouts": timeouts, "limits": limits}) as running:
        yield running, model


@pytest.fixture
def engine(server: tuple[Stoker, FakeModel]) -> Iterator[FakeModel]:
    """The engine, idle and healthy before and after."""
    stoker, model = server
    model.set()
    wait_idle(stoker)
    yield model
    model.set()
    wait_idle(stoker)
    assert not stoker.events("unexpected error")


@pytest.fixture
def stoker(server: tuple[Stoker, FakeModel], engine: FakeModel) -> Stoker:
    return server[0]


def running_requests(stoker: Stoker) -> int:
    return stoker.health()[1]["models"][0]["running"]


def wait_for(condition, seconds: float = 10.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


def wait_idle(stoker: Stoker) -> None:
    wait_for(lambda: running_requests(stoker) == 0)


def connect(stoker: Stoker) -> socket.socket:
    target = urlsplit(stoker.url)
    return socket.create_connection((target.hostname, target.port), timeout=10)


def post(body: object = CHAT, *headers: bytes, route: bytes = ROUTE, version: bytes = b"1.1") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [b"POST " + route + b" HTTP/" + version, b"host: x", b"content-length: %d" % len(raw), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + raw


def exchange(stoker: Stoker, data: bytes, until: bytes | None = None) -> bytes:
    """Everything the server says to `data`, until it closes the connection or has said `until`."""
    answer = b""
    with connect(stoker) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
                if until is not None and until in answer:
                    break
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 3_000_000, 431),
        (b"GET /health/live HTTP/1.1\r\n" + b"x-a: b\r\n" * 300_000, 431),
        (b"GET /health/live HTTP/1.1\r\nhost: x\r\n", 408),
        (b"POST /query HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", 408),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"POST /query HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /query HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", 400),
    ],
)
def test_what_is_no_sane_request_is_refused_and_the_connection_closed(stoker: Stoker, data: bytes, status: int) -> None:
    answer = exchange(stoker, data)
    assert status_of(answer) == status
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == status


def test_a_connection_that_says_nothing_is_closed_without_a_word(stoker: Stoker) -> None:
    assert exchange(stoker, b"") == b""


@pytest.mark.parametrize("header", [b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings", b"expect: 100-continue"])
def test_offers_of_other_protocols_do_not_lose_the_body(stoker: Stoker, header: bytes) -> None:
    answer = exchange(stoker, post(CHAT, header), until=b'"usage"')
    assert b"HTTP/1.1 200 OK" in answer


def test_nor_do_they_on_a_connection_that_was_used_before(stoker: Stoker) -> None:
    offer = b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings"
    with connect(stoker) as connection:
        for _ in range(3):
            connection.sendall(post(CHAT, offer))
            answer = b""
            while b'"usage"' not in answer:
                part = connection.recv(65536)
                assert part, answer
                answer += part
            assert status_of(answer) == 200, answer


def test_bodies_that_arrive_together_are_bounded(stoker: Stoker) -> None:
    head = b"POST /query HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n"
    clients = [connect(stoker) for _ in range(4)]
    statuses = []
    for client in clients:
        with contextlib.suppress(ConnectionError):
            client.sendall(head + b"x" * 3_900_000)
    for client in clients:
        with contextlib.suppress(ConnectionError):
            statuses.append(status_of(client.recv(65536)))
        client.close()
    assert 503 in statuses  # two of them fit into 8 MiB
    assert httpx.post(stoker.url + "/v1/chat/completions", json=CHAT).status_code == 200


def test_connections_are_bounded_and_the_next_one_hears_why(stoker: Stoker) -> None:
    clients = [connect(stoker) for _ in range(110)]
    with contextlib.suppress(ConnectionError):
        answer = clients[-1].recv(65536)
        assert status_of(answer) == 503
        assert b"retry-after" in answer
    for client in clients:
        client.close()
    wait_for(lambda: httpx.post(stoker.url + "/v1/chat/completions", json=CHAT).status_code == 200)


def test_http_1_0_is_answered_and_closed(stoker: Stoker) -> None:
    assert b"w4" in exchange(stoker, post({**CHAT, "stream": True}, version=b"1.0"))


def test_pipelined_requests_are_answered_in_order(stoker: Stoker) -> None:
    last = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = exchange(stoker, post() + post({"text": "x"}, route=b"/query") + last)
    assert answer.index(b"chat.completion") < answer.index(b'"route"') < answer.index(b'{"status":"ok"}')


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_behind_pipelined_requests_frees_its_slot(
    stoker: Stoker, engine: FakeModel, streaming: bool
) -> None:
    engine.set("none", tokens=2000, delay=0.01)
    connection = connect(stoker)
    connection.sendall(post({**CHAT, "stream": streaming}) * 3)
    wait_for(lambda: running_requests(stoker) == 1)
    connection.close()
    wait_for(lambda: running_requests(stoker) == 0, 3)


def test_a_client_that_reads_nothing_loses_its_slot(stoker: Stoker, engine: FakeModel) -> None:
    engine.set("none", tokens=1_000_000)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        target = urlsplit(stoker.url)
        connection.connect((target.hostname, target.port))
        connection.sendall(post({**CHAT, "stream": True, "max_tokens": 1_000_000}))
        wait_for(lambda: running_requests(stoker) == 1)
        wait_for(lambda: running_requests(stoker) == 0)
    assert stoker.health()[1]["models"][0]["engines"][0]["restarts"] == 0


def test_clients_that_leave_in_the_middle_of_their_body_are_no_errors(stoker: Stoker) -> None:
    for data in (b"POST /query HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", post()[:-5]):
        with connect(stoker) as connection:
            connection.sendall(data)
    assert httpx.post(stoker.url + "/v1/chat/completions", json=CHAT).status_code == 200
    assert not stoker.events("unexpected error")


def test_many_that_leave_at_once_leave_nothing_behind(stoker: Stoker, engine: FakeModel) -> None:
    engine.set("none", tokens=500, delay=0.01)
    for wait in (0.0, 0.02, 0.2):
        clients = [connect(stoker) for _ in range(40)]
        for number, client in enumerate(clients):
            client.sendall(post({**CHAT, "stream": bool(number % 2)}))
        time.sleep(wait)
        for client in clients:
            client.close()
    wait_for(lambda: stoker.health()[1]["models"][0]["waiting"] == 0)
    wait_idle(stoker)
    engine.set()
    assert httpx.post(stoker.url + "/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/..%2f", 404),
        ("/v1/models/%2e%2e", 404),
        ("/v1/models/%00", 404),
        ("/v1/models/%ff", 404),
        ("/v1/models/", 404),
        ("/docs/static/..%2f..%2fetc/passwd", 404),
        ("/health/", 404),
    ],
)
def test_strange_paths(stoker: Stoker, path: str, status: int) -> None:
    answer = exchange(stoker, f"GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n".encode())
    assert status_of(answer) == status
    assert b"evil.example" not in answer


def test_probes_answer_head_requests(stoker: Stoker) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/health/startup"):
        answer = httpx.head(stoker.url + path)
        assert answer.status_code == 200
        assert answer.content == b""


def test_every_refusal_is_logged_as_json(stoker: Stoker) -> None:
    httpx.post(stoker.url + "/v1/chat/completions", content=b"{", headers={"X-Request-Id": "broken-body"})
    limit = time.monotonic() + 10  # lines are written beside the answers
    while not (found := [line for line in stoker.events("refused") if line["request_id"] == "broken-body"]):
        assert time.monotonic() < limit
        time.sleep(0.01)
    (line,) = found
    assert (line["status"], line["error"], line["route"]) == (400, "invalid_request", "/v1/chat/completions")
    exchange(stoker, b"nonsense\r\n\r\n")
    answered = stoker.log.index("\n  curl")
    later = stoker.log[answered:].strip().splitlines()[2:]
    assert all(text.startswith("{") for text in later), [text for text in later if not text.startswith("{")]


def test_idle_connections_do_not_cost_the_engine_its_life(tmp_path: Path, model_path: Path) -> None:
    model = FakeModel(tmp_path, model_path)
    with Stoker(tmp_path, {"models": [model.settings]}, files=256) as stoker:
        pids = stoker.engine_pids()
        with httpx.Client() as early:
            assert early.get(stoker.url + "/health/live").status_code == 200
            idle = [connect(stoker) for _ in range(300)]
            time.sleep(0.3)
            answer = early.post(stoker.url + "/v1/chat/completions", json=CHAT)  # on the connection that it has
            assert answer.status_code == 200, answer.text
            assert b"503" in idle[-1].recv(4096)
        for client in idle:
            client.close()
        wait_for(lambda: httpx.post(stoker.url + "/v1/chat/completions", json=CHAT).status_code == 200)
        assert stoker.engine_pids() == pids


def test_http_1_0_gets_no_chunks(stoker: Stoker) -> None:
    head, _, body = exchange(stoker, post({**CHAT, "stream": True}, version=b"1.0")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_slow_stream_that_nobody_reads_loses_its_slot_too(stoker: Stoker, engine: FakeModel) -> None:
    engine.set("none", tokens=100_000, delay=0.0005)
    with connect(stoker) as connection:
        connection.sendall(post({**CHAT, "stream": True, "max_tokens": 100_000}))
        wait_for(lambda: running_requests(stoker) == 1)
        wait_for(lambda: running_requests(stoker) == 0, 30)
