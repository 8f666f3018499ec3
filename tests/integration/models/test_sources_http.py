"""Fetching over HTTP from a real server that misbehaves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque

import pytest
from model_server import Served, gguf_bytes

from stoker.errors import ModelFileError, SourceError
from stoker.models.download import Target, download
from stoker.models.partial import Partial, Quiet
from stoker.models.sources import key_of, parse

PATH = "/files/Tiny-Chat.Q4_K_M.gguf"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def content() -> bytes:
    return gguf_bytes(elements=300_000)


@pytest.fixture
def served(server, content) -> Served:
    server.files[PATH] = Served(content, etag='"v1"')
    return server.files[PATH]


@pytest.fixture
def add(server, registry):
    return lambda path=PATH, **options: registry.add(parse(server.url + path), **options)


def test_fetches_names_and_stores_by_digest(add, server, served, content, left_behind):
    model = add()
    assert (model.ref, model.digest, model.size) == ("tiny-chat@1", sha256(content), len(content))
    assert model.path.read_bytes() == content
    assert model.path.stat().st_mode & 0o777 == 0o444
    assert model.source == server.url + PATH
    assert left_behind() == {f"models/blobs/{model.digest}", "models/refs/tiny-chat/1.json"}


def test_a_broken_connection_is_resumed_where_it_stopped(add, server, served, content):
    served.drops = deque([500_000])
    assert add().digest == sha256(content)
    first, second = server.gets(PATH)
    assert "range" not in first.headers
    assert 0 < int(second.headers["range"].removeprefix("bytes=").removesuffix("-")) <= 500_000
    assert second.headers["if-range"] == '"v1"'


def test_a_failed_call_keeps_what_arrived_for_the_next(add, server, served, content, left_behind):
    served.drops, served.statuses = deque([500_000]), deque([200, 403])
    with pytest.raises(SourceError, match="HTTP 403"):
        add()
    key = key_of(parse(server.url + PATH))
    assert left_behind() == {f"models/partial/{key}", f"models/partial/{key}.json"}
    assert add().digest == sha256(content)
    assert server.gets(PATH)[-1].headers["range"] != "bytes=0-"
    assert not [name for name in left_behind() if "partial" in name]


def test_a_file_that_changed_meanwhile_is_fetched_anew(add, server, served):
    served.drops, served.statuses = deque([500_000]), deque([200, 404])
    with pytest.raises(SourceError, match="404"):
        add()
    changed = gguf_bytes(seed=1, elements=300_000)
    server.files[PATH] = Served(changed, etag='"v2"')
    assert add().digest == sha256(changed)


@pytest.mark.parametrize("fault", ["no validator", "weak validator", "no ranges"])
def test_without_means_to_resume_safely_it_starts_again(add, server, served, content, fault):
    served.drops = deque([500_000])
    served.etag = {"no validator": None, "weak validator": 'W/"v1"', "no ranges": '"v1"'}[fault]
    served.ranges = fault != "no ranges"
    assert add().digest == sha256(content)
    assert ("range" in server.gets(PATH)[1].headers) == (fault == "no ranges")


def test_a_complete_download_that_was_not_stored_needs_no_byte_again(server, served, content, tmp_path):
    served.statuses = deque()
    for expected_requests in (1, 2):
        with Partial.open(tmp_path, "key", "label", Quiet()) as partial:
            download(Target(server.url + PATH), partial)
            assert partial.digest() == sha256(content)
        assert len(server.gets(PATH)) == expected_requests
    assert server.gets(PATH)[1].headers["range"] == f"bytes={len(content)}-"


def test_an_overloaded_server_is_asked_again(add, server, served, content):
    served.statuses = deque([503, 429, 200])
    assert add().digest == sha256(content)
    assert len(server.gets(PATH)) == 3


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda good: good[:-5000], "truncated"),
        (lambda good: good[:100], "truncated|damaged|ends"),
        (lambda _: b"", "GGUF|empty|truncated"),
        (lambda _: b"GGUF" + b"\xff" * 4000, "version|damaged|corrupt"),
        (lambda good: b"<!doctype html>" + good, "web page"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (lambda good: b"\x93NUMPY" + good, "not a GGUF file"),
    ],
    ids=["short", "head only", "empty", "garbage", "page", "pointer", "random"],
)
def test_what_is_no_whole_model_is_refused_and_leaves_nothing(add, served, left_behind, make, complaint):
    served.content = make(served.content)
    with pytest.raises(ModelFileError, match=complaint) as caught:
        add()
    assert PATH in caught.value.message
    assert "partial" not in caught.value.message
    assert left_behind() == set()


def test_another_digest_than_expected_is_refused_and_leaves_nothing(add, served, left_behind):
    with pytest.raises(SourceError, match="expected 0000"):
        add(sha256="0" * 64)
    assert left_behind() == set()


def test_a_digest_that_is_stored_already_is_not_fetched(add, server, served, content):
    first = add()
    requests = len(server.seen)
    again = add(sha256=sha256(content).upper(), name="other", version="7")
    assert (again.ref, again.digest) == ("other@7", first.digest)
    assert len(server.seen) == requests


def test_a_damaged_stored_file_is_healed_by_adding_it_again(add, registry, served, content):
    model = add()
    model.path.chmod(0o644)
    model.path.write_bytes(content[:-1] + b"?")
    assert not registry.verify(model.ref).ok
    assert add(sha256=sha256(content)) == model
    assert registry.verify(model.ref).ok


def test_passwords_and_signatures_are_neither_stored_nor_printed(registry, server, served, data_dir):
    served.auth = ("ann", "pa55word")
    address = server.url.replace("http://", "http://ann:pa55word@") + PATH + "?signature=s3cret"
    model = registry.add(parse(address))
    assert server.gets(PATH)[0].path.endswith("?signature=s3cret")
    kept = "".join(path.read_text() for path in data_dir.rglob("*.json"))
    for secret in ("ann", "pa55word", "s3cret"):
        assert secret not in kept + model.source + repr(model) + repr(parse(address))
    served.auth = ("ann", "other")
    with pytest.raises(SourceError, match="login") as caught:
        registry.add(parse(address))
    assert "pa55word" not in caught.value.message
    assert "s3cret" not in caught.value.message


def test_redirects_are_followed_without_secrets_to_another_origin(registry, server, other_server, content):
    server.files["/real"] = Served(content, etag='"v1"')
    server.redirects["/a.gguf"] = (302, "b.gguf", {})
    server.redirects["/b.gguf"] = (307, other_server.url + "/c.gguf", {})
    other_server.files["/c.gguf"] = Served(content, etag='"v1"')
    model = registry.add(parse(server.url.replace("http://", "http://ann:pw@") + "/a.gguf"))
    assert model.name == "a"
    assert [seen.headers.get("authorization") is not None for seen in server.seen] == [True, True]
    assert [seen.headers.get("authorization") for seen in other_server.seen] == [None]


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("/loop.gguf", "more than 8 times"),
        ("http://192.0.2.1/x.gguf", "not followed"),
        ("file:///etc/passwd", "not followed"),
        ("", "not followed"),
        ("http://[bad/", "not followed"),
    ],
)
def test_bad_redirects_end(add, server, location, complaint, left_behind):
    server.redirects["/loop.gguf"] = (302, location, {})
    with pytest.raises(SourceError, match=complaint):
        add("/loop.gguf")
    assert left_behind() == set()


def test_missing_and_compressed_files_are_refused(add, served, left_behind):
    with pytest.raises(SourceError, match="no such file"):
        add("/nothing.gguf")
    served.encoding = "gzip"
    with pytest.raises(SourceError, match="compresses"):
        add()
    assert left_behind() == set()


def test_a_size_that_nobody_names_is_no_obstacle(add, served, content):
    served.chunked = True
    assert add().digest == sha256(content)


def test_it_gives_up_after_a_few_attempts_and_says_what_is_kept(server, served, tmp_path):
    served.drops = deque([300_000, 0, 0, 0])
    notes = []

    class Listener(Quiet):
        def note(self, text):
            notes.append(text)

    with Partial.open(tmp_path, "key", "the file", Listener()) as partial, pytest.raises(SourceError) as caught:
        download(Target(server.url + PATH, attempts=3, first_pause=0), partial)
    assert "gave up" in caught.value.message
    assert "bytes are kept" in caught.value.message
    assert len(server.gets(PATH)) == 3
    assert len(notes) == 2


def test_a_host_that_is_not_there_is_a_source_error(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = Target(f"http://127.0.0.1:{unused.getsockname()[1]}/x.gguf", attempts=2, first_pause=0)
        with (
            Partial.open(tmp_path, "key", "the file", Quiet()) as partial,
            pytest.raises(SourceError, match="cannot connect"),
        ):
            download(target, partial)
    assert list(tmp_path.iterdir()) == []


def test_two_who_add_the_same_at_once_fetch_it_once(registry, server, served, content):
    served.drip = (200_000, 0.05)
    models, errors = [], []

    def run():
        try:
            models.append(registry.add(parse(server.url + PATH)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [model.ref for model in models] == ["tiny-chat@1"] * 3
    assert len(server.gets(PATH)) == 1


def test_a_call_from_a_thread_of_a_running_loop_works(registry, server, served, content):
    async def main():
        return await asyncio.to_thread(registry.add, parse(server.url + PATH))

    assert asyncio.run(main()).digest == sha256(content)


def test_kill_9_in_the_middle_then_resume(registry, server, served, data_dir, left_behind):
    content = served.content
    served.drip = (20_000, 0.05)
    script = (
        "import sys; from pathlib import Path; from stoker.models.registry import ModelRegistry; "
        "from stoker.models.sources import parse; ModelRegistry(Path(sys.argv[1])).add(parse(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(data_dir), server.url + PATH])
    try:
        checkpoint = data_dir / "models" / "partial" / (key_of(parse(server.url + PATH)) + ".json")
        until = time.monotonic() + 60
        durable = 0
        while not durable and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
            durable = json.loads(checkpoint.read_bytes())["durable"] if checkpoint.exists() else 0
        assert 0 < durable < len(content)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    served.drip = None
    assert registry.list() == ()
    assert registry.add(parse(server.url + PATH)).digest == sha256(content)
    resumed_at = int(server.gets(PATH)[-1].headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert resumed_at >= durable
    assert left_behind() == {f"models/blobs/{sha256(content)}", "models/refs/tiny-chat/1.json"}
