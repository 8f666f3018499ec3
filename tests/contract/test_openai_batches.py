"""OpenAI's files and batches by the official client, on a real server: what goes in comes out, also after a kill."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch
from tests.running import FakeModel, Stoker

from stoker.admission.keys import hash_of

LONG_S = 90.0
CHAT = "/v1/chat/completions"
ANN, BOB = "sk-ann-0123456789abcdef", "sk-bob-0123456789abcdef"
ENDED = {"completed", "failed", "cancelled", "expired"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Stoker]:
    """A server that tests share, whose engine does nothing strange, and whose files have at most 2 MiB."""
    directory = tmp_path_factory.mktemp("batches")
    fake = FakeModel(directory, model_path, plan={"slots": 2, "context": 1024})
    with Stoker(directory, {"models": [fake.settings], "jobs": {"file_mib": 2, "batch_requests": 500}}) as running:
        yield running


@pytest.fixture
def client(plain: Stoker) -> openai.OpenAI:
    return client_of(plain)


def client_of(stoker: Stoker, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stoker.url}/v1", api_key=key, max_retries=0, timeout=30)


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = body or {"messages": [{"role": "user", "content": custom_id}], "max_tokens": 2}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": asked}


def jsonl(*lines: Any) -> bytes:
    return "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines).encode()


def upload(client: openai.OpenAI, *lines: Any) -> str:
    return client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch").id


def begin(client: openai.OpenAI, *lines: Any, endpoint: Any = CHAT, **more: Any) -> Batch:
    return client.batches.create(
        input_file_id=upload(client, *lines), endpoint=endpoint, completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    """The batch once it has ended."""
    return until(lambda: client.batches.retrieve(batch.id), lambda found: found.status in ENDED)


def until(look: Callable[[], Any], condition: Callable[[Any], bool]) -> Any:
    limit = time.monotonic() + LONG_S
    while not condition(found := look()):
        assert time.monotonic() < limit, f"it never came about: {found}"
        time.sleep(0.05)
    return found


def rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """A file's lines."""
    assert file_id is not None
    return [json.loads(row) for row in client.files.content(file_id).text.splitlines()]


def test_files_come_back_as_they_were_sent(client: openai.OpenAI) -> None:
    content = jsonl(line("a"), {"name": "Ä\u2028"}) + bytes(range(256))
    file = client.files.create(file=("../../ä.jsonl", io.BytesIO(content)), purpose="batch")
    assert (file.object, file.bytes, file.purpose, file.status) == ("file", len(content), "batch", "processed")
    assert file.filename.endswith("ä.jsonl")
    assert file.expires_at == pytest.approx(file.created_at + 30 * 86_400, abs=2)
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    assert client.files.delete(file.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=file.id):
            gone(file.id)


def test_files_are_listed_page_by_page(client: openai.OpenAI) -> None:
    ids = [upload(client, line(f"{n}")) for n in range(5)]
    listed = [file.id for file in client.files.list(limit=2) if file.id in ids]
    assert listed == ids[::-1]
    assert [file.id for file in client.files.list(order="asc", purpose="batch") if file.id in ids] == ids
    assert [file.id for file in client.files.list(after=ids[1], order="asc", limit=1)][:1] == [ids[2]]
    assert ids[0] not in [file.id for file in client.files.list(purpose="batch_output")]


def test_a_file_is_kept_as_long_as_it_says(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("in.jsonl", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="seconds"):
        client.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 10})


def test_files_that_are_not_taken(client: openai.OpenAI, plain: Stoker) -> None:
    with pytest.raises(openai.BadRequestError, match="fine-tune"):
        client.files.create(file=b"x", purpose="fine-tune")
    with pytest.raises(openai.APIStatusError) as large:
        client.files.create(file=b"x" * (2 * 2**20 + 1), purpose="batch")
    assert large.value.status_code == 413
    url = f"{plain.url}/v1/files"
    for sent in (
        {"data": {"purpose": "batch"}},
        {"files": {"other": b"x"}, "data": {"purpose": "batch"}},
        {"files": {"file": b"x"}},
        {"files": [("file", b"x"), ("file", b"y")], "data": {"purpose": "batch"}},
        {"files": {"file": b"x"}, "data": {"purpose": "x" * 5000}},
        {"files": {"file": b"x"}, "data": {f"n{n}": "x" for n in range(20)}},
        {"content": b"--b\r\nnonsense", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        {"content": b"--b\r\n", "headers": {"content-type": "multipart/form-data"}},
    ):
        answer = httpx.post(url, **sent)
        kind = 415 if "files" not in sent and "content" not in sent else 400
        assert (answer.status_code, list(answer.json())) == (kind, ["error"]), (sent, answer.text)
    chunks = (b"x" * 65_536 for _ in range(40))
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'

    def endless() -> Iterator[bytes]:
        yield head
        yield from chunks

    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):  # the server hangs up on it
        assert httpx.post(url, content=endless(), headers=boundary).status_code == 413
    left = [path.name for path in (plain.directory / "data" / "files").rglob("*.part")]
    assert left == []


def test_a_batch_of_conversations(client: openai.OpenAI) -> None:
    lines = [line(f"q-{n}") for n in range(120)]
    batch = begin(client, *lines, metadata={"night": "1"})
    assert (batch.status, batch.endpoint, batch.completion_window) == ("validating", CHAT, "24h")
    assert batch.expires_at == batch.created_at + 86_400
    done = ended(client, batch)
    assert (done.status, done.errors, done.error_file_id, done.metadata) == ("completed", None, None, {"night": "1"})
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (120, 120, 0)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    found = rows(client, done.output_file_id)
    assert [row["custom_id"] for row in found] == [each["custom_id"] for each in lines]
    assert len({row["id"] for row in found}) == 120
    for row in found:
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["body"]["choices"][0]["message"]["content"] == "w0 w1 "
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"
    jobs = httpx.get(f"{client.base_url.copy_with(path='/jobs')}", params={"batch": batch.id, "limit": 1000}).json()
    assert len(jobs["data"]) == 120


@pytest.mark.parametrize(
    ("endpoint", "body"), [("/v1/completions", {"prompt": "a"}), ("/v1/embeddings", {"input": ["a", "b"]})]
)
def test_batches_of_other_routes(client: openai.OpenAI, endpoint: str, body: dict[str, Any]) -> None:
    done = ended(client, begin(client, line("one", endpoint, **body), endpoint=endpoint))
    assert done.status == "completed"
    assert rows(client, done.output_file_id)[0]["response"]["status_code"] == 200


def test_requests_that_cannot_be_answered_are_in_the_other_file(client: openai.OpenAI) -> None:
    bad = {
        "bad-model": line("bad-model", model="unknown", messages=[{"role": "user", "content": "x"}]),
        "bad-body": line("bad-body", messages=[]),
        "bad-too": line("bad-too", messages=[{"role": "user", "content": "x"}], max_tokens=0),
    }
    lines = [*(line(f"a{n}") for n in range(30)), *bad.values(), *(line(f"b{n}") for n in range(7))]
    done = ended(client, begin(client, *lines))
    counts = done.request_counts
    assert (done.status, counts.total, counts.completed, counts.failed) == ("completed", 40, 37, 3)
    assert len(rows(client, done.output_file_id)) == 37
    errors = {row["custom_id"]: row["response"] for row in rows(client, done.error_file_id)}
    assert list(errors) == list(bad)
    assert errors["bad-model"]["status_code"] == 404
    assert errors["bad-model"]["body"]["error"]["code"] == "model_not_found"
    assert errors["bad-body"]["body"]["error"]["param"] == "messages"


def test_a_file_that_is_not_in_order_fails_with_its_lines(client: openai.OpenAI) -> None:
    failed = ended(
        client,
        begin(
            client,
            line("a"),
            "not json",
            line("a"),
            {**line("c"), "method": "GET"},
            {**line("d"), "url": "/v1/models"},
            {**line("e"), "body": "x"},
            {**line("f"), "custom_id": 7},
            "",
            "[]",
            line("g"),
        ),
    )
    assert (failed.status, failed.output_file_id, failed.request_counts.total) == ("failed", None, 0)
    assert failed.failed_at is not None
    assert [(error.line, error.code) for error in failed.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "invalid_method"),
        (5, "mismatched_url"),
        (6, "invalid_body"),
        (7, "invalid_custom_id"),
        (9, "invalid_json_line"),
    ]
    assert ended(client, begin(client, "", " ")).errors.data[0].code == "empty_file"
    many = ended(client, begin(client, *(line(f"{n}") for n in range(501))))
    assert many.errors.data[0].code == "too_many_requests"


def test_what_makes_no_batch(client: openai.OpenAI) -> None:
    file = upload(client, line("a"))
    with pytest.raises(openai.NotFoundError, match="file-"):
        client.batches.create(input_file_id="file-" + "0" * 32, endpoint=CHAT, completion_window="24h")
    for hostile in ("../../etc/passwd", "", "file-\0"):
        with pytest.raises(openai.NotFoundError):
            client.batches.create(input_file_id=hostile, endpoint=CHAT, completion_window="24h")
    for wrong in ({"endpoint": "/v1/models"}, {"completion_window": "1h"}, {"metadata": {"a": "x" * 513}}):
        fields: dict[str, Any] = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **wrong}
        with pytest.raises(openai.BadRequestError, match=next(iter(wrong))):
            client.batches.create(**fields)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_" + "0" * 32)


def test_batches_are_listed_page_by_page(client: openai.OpenAI) -> None:
    ids = [begin(client, line("a")).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=1) if batch.id in ids] == ids[::-1]


def test_a_cancelled_batch_keeps_what_it_has(tmp_path: Path, fake_model: FakeModel) -> None:
    fake_model.set(delay=0.05, tokens=1000)
    lines = [line(f"quick-{n}") for n in range(4)]
    lines += [line(f"slow-{n}", messages=[{"role": "user", "content": "x"}], max_tokens=900) for n in range(400)]
    directory = tmp_path / "server"
    directory.mkdir()
    with Stoker(directory, {"models": [fake_model.settings], "jobs": {"per_key": 100}}) as stoker:
        client = client_of(stoker)
        batch = begin(client, *lines)
        until(lambda: client.batches.retrieve(batch.id).request_counts, lambda counts: counts.completed == 4)
        with pytest.raises(openai.ConflictError, match=batch.id):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
        done = ended(client, batch)
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("cancelled", 4, 400)
        assert done.cancelling_at <= done.cancelled_at
        assert [row["custom_id"] for row in rows(client, done.output_file_id)] == [f"quick-{n}" for n in range(4)]
        left = rows(client, done.error_file_id)
        assert [row["custom_id"] for row in left] == [f"slow-{n}" for n in range(400)]
        assert {row["error"]["code"] for row in left} == {"cancelled", "batch_cancelled"}
        with pytest.raises(openai.ConflictError, match="cancelled"):
            client.batches.cancel(batch.id)
        assert client.files.delete(batch.input_file_id).deleted


def test_a_kill_in_the_middle_loses_and_doubles_nothing(tmp_path: Path, fake_model: FakeModel) -> None:
    fake_model.set(delay=0.005)
    directory = tmp_path / "server"
    directory.mkdir()
    settings = {"models": [fake_model.settings], "jobs": {"lease": 1, "per_key": 60}}
    lines = [line(f"q-{n}") for n in range(300)]
    batch: Batch | None = None
    for kill_at in (0, 40, 150, 260, None):
        with Stoker(directory, settings) as stoker:
            client = client_of(stoker)
            if batch is None:
                batch = begin(client, *lines)
            if kill_at is None:
                done = ended(client, batch)
                counts = done.request_counts
                assert (done.status, counts.completed, counts.failed) == ("completed", 300, 0)
                found = [row["custom_id"] for row in rows(client, done.output_file_id)]
                assert found == [each["custom_id"] for each in lines]
                break
            seen = batch.id
            until(lambda: client.batches.retrieve(seen).request_counts.completed, lambda count: count >= kill_at)  # noqa: B023
            stoker.process.kill()
            stoker.process.wait()


def test_files_and_batches_belong_to_their_key(tmp_path: Path, fake_model: FakeModel) -> None:
    directory = tmp_path / "server"
    directory.mkdir()
    keys = [{"name": name, "hash": hash_of(key)} for name, key in (("ann", ANN), ("bob", BOB))]
    with Stoker(directory, {"models": [fake_model.settings], "keys": keys}) as stoker:
        ann, bob = client_of(stoker, ANN), client_of(stoker, BOB)
        batch = begin(ann, line("a"))
        for theirs in (
            lambda: bob.files.retrieve(batch.input_file_id),
            lambda: bob.files.content(batch.input_file_id),
            lambda: bob.files.delete(batch.input_file_id),
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
            lambda: bob.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                theirs()
        assert list(bob.files.list()) == list(bob.batches.list()) == []
        with pytest.raises(openai.AuthenticationError):
            client_of(stoker).files.list()
        assert ended(ann, batch).status == "completed"
        for path in (stoker.directory / "data" / "files").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path
