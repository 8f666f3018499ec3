"""Bad input never makes a 500, a hang or a lost neighbour."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from tests.conftest import shared_rows
from tests.running import Stoker

CHAT = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4}


def raw_request(url: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, bytes]:
    """Send exactly these bytes; status, head and body of the answer."""
    target = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nhost: {target.netloc}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    with socket.create_connection((target.hostname, target.port), timeout=60) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused early; the answer can be read
            connection.sendall(head.encode("latin-1") + body)
        answer = b""
        while True:
            try:
                data = connection.recv(65536)
            except ConnectionResetError:
                break
            if not data:
                break
            answer += data
    assert answer, "the connection was dropped without an answer"
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    return int(answer.split(b" ", 2)[1]), head_bytes, rest


def test_every_bad_input_gets_its_answer(stoker: Stoker) -> None:
    wrong = []
    for row in shared_rows("bad_inputs/dev.jsonl"):
        body = base64.b64decode(row["body_base64"])
        status, head, answer = raw_request(stoker.url, row["path"], body, row["headers"])
        if row["expect"] == "4xx" and not 400 <= status < 500:
            wrong.append((row["name"], status, answer[:200]))
        if status >= 500:
            wrong.append((row["name"], status, answer[:200]))
        if 400 <= status < 500 and b"application/json" in head and row["path"].startswith("/v1"):
            error = json.loads(answer)["error"]
            assert error["message"], row["name"]
            assert error["type"] == "invalid_request_error"
            assert error["code"]
        assert b"x-request-id" in head or b"Invalid HTTP" in answer, row["name"]
        if row["name"] == "hdr_request_id_crlf":
            assert b"set-cookie" not in head.lower()
    assert not wrong
    assert httpx.post(f"{stoker.url}/v1/chat/completions", json=CHAT, timeout=60).status_code == 200
    assert not stoker.events("unexpected error")


def test_bodies_are_bounded_before_they_are_parsed(stoker: Stoker) -> None:
    url = f"{stoker.url}/v1/chat/completions"
    assert httpx.post(url, content=b" " * 5_000_000, timeout=60).status_code == 413

    def endless():
        for _ in range(100):
            yield b" " * 100_000

    with contextlib.suppress(httpx.WriteError):  # the server may close while we are still sending
        assert httpx.post(url, content=endless(), timeout=60).status_code == 413
    assert httpx.post(url, content=b"{}", headers={"content-encoding": "gzip"}).status_code == 415


def test_request_ids(stoker: Stoker) -> None:
    url = f"{stoker.url}/v1/models"
    assert httpx.get(url, headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for insane in ("a b", "x" * 200, "<script>"):
        assert httpx.get(url, headers={"X-Request-Id": insane}).headers["x-request-id"] not in {insane, ""}


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nothing", 404, "application/problem+json"),
        ("GET", "/v1/nothing", 404, "application/json"),
        ("GET", "/v1/chat/completions", 405, "application/json"),
        ("DELETE", "/query", 405, "application/problem+json"),
        ("POST", "/query", 400, "application/problem+json"),
    ],
)
def test_errors_come_in_the_envelope_of_their_path(
    stoker: Stoker, method: str, path: str, status: int, kind: str
) -> None:
    answer = httpx.request(method, stoker.url + path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith(kind)


def test_the_documentation_needs_no_internet(stoker: Stoker) -> None:
    page = httpx.get(f"{stoker.url}/docs").text
    assert "https://" not in page
    script = page.split('<script src="')[1].split('"')[0]
    assert httpx.get(stoker.url + script).status_code == 200
    document = httpx.get(f"{stoker.url}/openapi.json").json()
    bodies = [path["post"].get("requestBody", {}) for path in document["paths"].values() if "post" in path]
    named = [body["content"]["application/json"]["schema"]["$ref"] for body in bodies if "$ref" in str(body)]
    assert len(named) >= 6
    for reference in named:
        name = reference.rsplit("/", 1)[1]
        assert name in document["components"]["schemas"]


def test_a_slow_sender_disturbs_nobody(stoker: Stoker) -> None:
    target = urlsplit(stoker.url)
    idlers = [socket.create_connection((target.hostname, target.port)) for _ in range(20)]
    for idler in idlers:
        idler.sendall(b"POST /query HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    try:
        began = time.monotonic()
        assert httpx.get(f"{stoker.url}/health/live").status_code == 200
        assert httpx.post(f"{stoker.url}/v1/chat/completions", json=CHAT, timeout=60).status_code == 200
        assert time.monotonic() - began < 60
    finally:
        for idler in idlers:
            idler.close()


@pytest.mark.timeout(600)  # some 150 requests with answers by the real engine
def test_schemathesis_finds_no_server_error(stoker: Stoker) -> None:
    """Generated requests for every route of the published document, against the real engine."""
    document = httpx.get(f"{stoker.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    seen: set[int] = set()
    for operation in schema.get_all_operations():
        drive(operation.ok(), stoker.url, seen)
    assert {200, 400} <= seen


def drive(operation: Any, url: str, seen: set[int]) -> None:
    """Send one operation's generated requests; short answers keep the engine's part small."""

    @given(case=operation.as_strategy())
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and "embeddings" not in operation.path:
            case.body.setdefault("max_tokens", 2)
        response = case.call(base_url=url, timeout=60)
        seen.add(response.status_code)
        assert response.status_code < 500 or response.status_code in {503, 504}, response.text
        if response.status_code >= 400 and response.content:
            assert response.headers["content-type"][0].startswith(("application/json", "application/problem+json"))

    send()
