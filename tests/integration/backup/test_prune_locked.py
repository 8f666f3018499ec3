"""Prunes in buckets that keep things: object lock, and a policy against deletion."""

from __future__ import annotations

import hashlib
import hmac
import urllib.request
from datetime import UTC, datetime

import obstore
import pytest
from tests.prune_work import DAY, contents, digest, ids, incomplete, keep, keys, pruned
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

from stoker.backup.repository import Repository, object_key, snapshot_key
from stoker.objects.s3 import S3Objects
from stoker.objects.store import StorageError

RETENTION = b"""<ObjectLockConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<ObjectLockEnabled>Enabled</ObjectLockEnabled>
<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>"""
NO_DELETIONS = b"""{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*",
"Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::kept/*"}]}"""


@pytest.fixture
def server(s3_server: S3Server, monkeypatch) -> S3Server:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def ask(server: S3Server, path: str, query: str = "", body: bytes = b"", **headers: str) -> None:
    """A signed PUT that makes or configures a bucket, which the client cannot.

    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    content = hashlib.sha256(body).hexdigest()
    signed = {
        "host": server.url.removeprefix("http://"),
        "x-amz-content-sha256": content,
        "x-amz-date": now,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    names = ";".join(sorted(signed))
    request = "\n".join(
        ["PUT", path, query, *(f"{name}:{signed[name]}" for name in sorted(signed)), "", names, content]
    )
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    words = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    signature = hmac.new(key, words.encode(), "sha256").hexdigest()
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    url = f"{server.url}{path}?{query}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(url, body, signed, method="PUT"), timeout=10).close()


def test_object_lock_keeps_what_was_pruned_under_its_version(server):
    """A deletion in such a bucket hides the object: the snapshot is gone for us, and its bytes for nobody."""
    ask(server, "/locked", x_amz_bucket_object_lock_enabled="true")
    ask(server, "/locked", "object-lock=", RETENTION)
    repository = Repository(S3Objects("locked", "r"))
    new = keep(repository, b"shared", b"new")
    old = keep(repository, b"shared", b"old", days=2)
    bare = server.store("locked")
    paths = [f"r/{snapshot_key(old)}", f"r/{object_key(digest(b'old'))}"]
    versions = {path: obstore.head(bare, path)["version"] for path in paths}
    before = {path: bytes(obstore.get(bare, path).bytes()) for path in paths}
    result = pruned(repository, grace_s=-DAY)
    assert (result.removed, result.collected, dict(result.held)) == ((old,), 1, {})
    assert ids(repository) == {new}
    assert contents(repository) == keys(b"shared", b"new")
    assert not incomplete(repository)
    for path, version in versions.items():
        assert bytes(obstore.get(bare, path, options={"version": version}).bytes()) == before[path]


def test_where_nothing_may_be_deleted_a_prune_says_so_and_changes_nothing(server):
    ask(server, "/kept")
    repository = Repository(S3Objects("kept", "r"))
    there = {keep(repository, b"new"), keep(repository, b"old", days=2)}
    ask(server, "/kept", "policy=", NO_DELETIONS)
    with pytest.raises(StorageError, match="denied"):
        pruned(repository, grace_s=-DAY)
    assert ids(repository) == there
    assert contents(repository) == keys(b"new", b"old")
    assert not repository.prune_lock()
