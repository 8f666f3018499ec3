"""What servers answer that a well one does not: lost answers, locks, quotas, trouble of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stoker.objects import s3
from stoker.objects.s3 import S3Objects
from stoker.objects.store import ObjectExists, ObjectLocked, StorageError

BODY = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"


class Bucket(ThreadingHTTPServer):
    """Objects in memory; what a test puts into `answers` is answered first, after the act if that says so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content: dict[str, bytes] = {}
        self.answers: list[tuple[int, str, str, bool]] = []
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))

        def act() -> int:
            if self.headers.get("If-None-Match") == "*" and self.path in self.server.content:
                return 412
            self.server.content[self.path] = data
            return 200

        self._do(act)

    def do_DELETE(self) -> None:
        def act() -> int:
            return 204 if self.server.content.pop(self.path, None) is not None else 404

        self._do(act)

    def do_GET(self) -> None:
        self._do(lambda: 200 if self.path in self.server.content else 404)

    def _do(self, act) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.answers:
            status, code, message, done = self.server.answers.pop(0)
            if done:
                act()
            body = BODY.format(code, message).encode()
        else:
            status = act()
            body = self.server.content.get(self.path, b"") if self.command == "GET" else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch) -> Iterator[Bucket]:
    with Bucket() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_new_object_whose_first_answer_was_lost_is_ours(bucket):
    bucket.answers = [(500, "InternalError", "We encountered an internal error", True)]
    S3Objects("bucket").put("a", b"mine", only_new=True)
    assert bucket.content == {"/bucket/a": b"mine"}
    assert bucket.asked == ["PUT /bucket/a", "PUT /bucket/a", "GET /bucket/a"]


def test_a_new_object_that_somebody_else_was_first_with_is_not(bucket):
    bucket.content["/bucket/a"] = b"theirs"
    bucket.answers = [(500, "InternalError", "We encountered an internal error", False)]
    with pytest.raises(ObjectExists):
        S3Objects("bucket").put("a", b"mine", only_new=True)
    assert bucket.content == {"/bucket/a": b"theirs"}


def test_a_server_in_trouble_is_asked_again(bucket):
    bucket.answers = [(503, "SlowDown", "Please reduce your request rate", False)] * 3
    S3Objects("bucket").put("a", b"x")
    assert bucket.content == {"/bucket/a": b"x"}


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [
        ("AccessDenied", "Access Denied because object protected by object lock.", ObjectLocked),
        ("AccessDenied", "The object is under retention until 2027", ObjectLocked),
        ("ObjectLockedByBucketPolicy", "no", ObjectLocked),
        ("AccessDenied", "User is not authorized: with an explicit deny in a resource-based policy", ObjectLocked),
        ("AccessDenied", "Access Denied", StorageError),
        ("SignatureDoesNotMatch", "The signature does not match", StorageError),
    ],
)
def test_locks_are_told_from_other_refusals(bucket, code, message, error):
    bucket.content["/bucket/a"] = b"x"
    bucket.answers = [(403, code, message, False)]
    with pytest.raises(StorageError) as told:
        S3Objects("bucket").delete("a")
    assert type(told.value) is error
    assert ("check AWS_ACCESS_KEY_ID" in str(told.value)) is (error is StorageError)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "NoSuchBucket", "there is no bucket bucket; make it"),
        (403, "QuotaExceeded", "make room"),
        (507, "XMinioStorageFull", "make room"),
        (403, "RequestTimeTooSkewed", "clock"),
        (501, "NotImplemented", "conditional writes"),
        (400, "InvalidRequest", "check AWS_ENDPOINT_URL"),
    ],
)
def test_refused_writes_are_told_in_words(bucket, monkeypatch, status, code, words):
    monkeypatch.setattr(s3, "RETRIES", 1)
    for only_new in (False, True):
        bucket.answers = [(status, code, "so it is", False)] * 2
        with pytest.raises(StorageError, match=words) as told:
            S3Objects("bucket").put("a", b"x", only_new=only_new)
        assert "\n" not in str(told.value)


def test_deleting_what_is_not_there_is_nothing_with_servers_that_mind_too(bucket):
    S3Objects("bucket").delete("a")
    assert bucket.asked == ["DELETE /bucket/a"]


def test_nothing_is_promised_of_sweeping(bucket):
    assert S3Objects("bucket").sweep(0) == 0
    assert bucket.asked == []
