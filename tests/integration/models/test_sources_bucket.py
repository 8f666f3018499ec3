"""Models from S3, against a real server that checks signatures."""

from __future__ import annotations

import hashlib

import obstore
import pytest
from model_server import gguf_bytes
from obstore.store import S3Store

from stoker.errors import ModelFileError, SourceError
from stoker.models import sources
from stoker.models.sources import parse
from stoker.objects.s3 import BucketReader, ObjectChanged


@pytest.fixture
def bucket(s3_server, monkeypatch) -> S3Store:
    """The standard environment, as a user would set it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.store("models")


def test_an_object_becomes_a_model(bucket, registry):
    content = gguf_bytes(elements=300_000)
    obstore.put(bucket, "team a/Tiny.gguf", content)
    model = registry.add(parse("s3://models/team a/Tiny.gguf"))
    assert (model.ref, model.digest) == ("tiny@1", hashlib.sha256(content).hexdigest())
    assert model.source == "s3://models/team a/Tiny.gguf"


def test_an_interrupted_read_resumes_unless_the_object_changed(bucket, registry, monkeypatch, left_behind):
    monkeypatch.setattr(sources, "S3_PIECE", 100_000)
    old, new = gguf_bytes(elements=100_000), gguf_bytes(seed=1, elements=100_000)
    obstore.put(bucket, "resume.gguf", old)
    real = BucketReader.read
    starts: list[int] = []

    def breaks(self, key, start, end, etag):
        starts.append(start)
        if len(starts) == 3:
            raise SourceError("the line is cut")
        return real(self, key, start, end, etag)

    monkeypatch.setattr(BucketReader, "read", breaks)
    for content, resumed_at in ((old, 200_000), (new, 0)):
        starts.clear()
        with pytest.raises(SourceError, match="cut"):
            registry.add(parse("s3://models/resume.gguf"))
        assert any("partial" in name for name in left_behind())
        obstore.put(bucket, "resume.gguf", content)
        assert registry.add(parse("s3://models/resume.gguf")).digest == hashlib.sha256(content).hexdigest()
        assert starts[:4] == [0, 100_000, 200_000, resumed_at]


def test_an_object_that_changes_while_it_is_read_is_not_mixed(bucket, registry, monkeypatch, left_behind):
    monkeypatch.setattr(sources, "S3_PIECE", 100_000)
    obstore.put(bucket, "mixed.gguf", gguf_bytes(elements=100_000))
    real = BucketReader.read

    def overwritten(self, key, start, end, etag):
        if start:
            obstore.put(bucket, "mixed.gguf", gguf_bytes(seed=5, elements=100_000))
        return real(self, key, start, end, etag)

    monkeypatch.setattr(BucketReader, "read", overwritten)
    with pytest.raises(ObjectChanged, match="changed"):
        registry.add(parse("s3://models/mixed.gguf"))
    assert left_behind() == set()


def test_refusals(bucket, registry, monkeypatch, left_behind):
    obstore.put(bucket, "page.gguf", b"<html>no model</html>")
    with pytest.raises(ModelFileError, match="web page"):
        registry.add(parse("s3://models/page.gguf"))
    with pytest.raises(SourceError, match="no such object or bucket"):
        registry.add(parse("s3://models/missing.gguf"))
    with pytest.raises(SourceError, match="no such object or bucket"):
        registry.add(parse("s3://no-such-bucket/missing.gguf"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceError, match="AWS_SECRET_ACCESS_KEY"):
        registry.add(parse("s3://models/page.gguf"))
    assert left_behind() == set()
