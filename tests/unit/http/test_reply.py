"""A reply's work ends with the reply: whoever leaves or fails takes along everything that was begun for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from stoker.admission.auth import Caller
from stoker.errors import ContextOverflow
from stoker.http.render import CompletionRenderer
from stoker.http.reply import Reply
from stoker.observability.record import Record
from stoker.pipeline import Admitted
from stoker.types import Chunk, GenerationRequest, ModelIdentity, Usage

IDENTITY = ModelIdentity("m", "1", "0" * 64)


class FakePipeline:
    """Repeats each prompt; `wait` never ends, `bad` is refused after the others have begun."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.busy = 0
        self.most = 0
        self.begun: list[str] = []

    @contextlib.asynccontextmanager
    async def admitted(self, requests: Any, _caller: Any, _headers: Any, _record: Any) -> AsyncGenerator[Any]:
        pool = SimpleNamespace(settings=SimpleNamespace(slots=self.slots))
        yield [Admitted(request, pool) for request in requests]  # type: ignore[arg-type]

    async def answer(self, admitted: Admitted, record: Record) -> AsyncGenerator[Chunk]:
        request = admitted.request
        record.model = IDENTITY
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.begun.append(str(request.prompt))
        try:
            await asyncio.sleep(0)
            if request.prompt == "bad":
                raise ContextOverflow("too long")
            if request.prompt == "wait":
                await asyncio.Event().wait()
            yield Chunk(text=str(request.prompt))
            last = Chunk(finish_reason="stop", usage=Usage(1, 1))
            record.note(last.finish_reason, Usage(1, 1), "bypass")
            yield last
        finally:
            self.busy -= 1


class Client:
    """The other end: what it was sent, and the moment at which it leaves."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def reply_to(pipeline: FakePipeline, prompts: list[str], *, stream: bool = False) -> tuple[Reply, Record]:
    requests = [GenerationRequest("r", "completion", "m", 1e9, prompt=prompt) for prompt in prompts]
    record = Record("r", "/v1/completions")
    renderer = CompletionRenderer(requests[0], include_usage=False)
    return Reply(pipeline, requests, Caller(), renderer, record, stream=stream), record  # type: ignore[arg-type]


async def test_prompts_of_one_call_are_answered_in_order_and_never_fill_more_than_the_slots() -> None:
    pipeline, client = FakePipeline(slots=3), Client()
    prompts = [f"p{number}" for number in range(20)]
    reply, _ = reply_to(pipeline, prompts)
    await reply({"type": "http", "headers": []}, client.receive, client.send)
    assert [choice["text"] for choice in json.loads(client.body)["choices"]] == prompts
    assert pipeline.most == 3
    assert json.loads(client.body)["usage"]["total_tokens"] == 40


async def test_a_prompt_that_fails_ends_the_others() -> None:
    pipeline, client = FakePipeline(slots=2), Client()
    reply, record = reply_to(pipeline, ["wait", "bad", "later"])
    await reply({"type": "http", "headers": []}, client.receive, client.send)
    assert client.sent[0]["status"] == record.status == 400
    assert pipeline.busy == 0
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompts", [["wait"], ["wait", "wait", "p"]])
async def test_a_client_that_leaves_ends_everything(prompts: list[str], stream: bool) -> None:
    pipeline, client = FakePipeline(slots=2), Client()
    reply, record = reply_to(pipeline, prompts, stream=stream)
    replying = asyncio.create_task(reply({"type": "http", "headers": []}, client.receive, client.send))
    while not pipeline.busy:
        await asyncio.sleep(0)
    client.leaves.set()
    await replying
    assert pipeline.busy == 0
    assert record.disconnected
    assert client.sent == []
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_another_cancellation_is_not_swallowed() -> None:
    pipeline, client = FakePipeline(slots=1), Client()
    reply, _ = reply_to(pipeline, ["wait"])
    replying = asyncio.create_task(reply({"type": "http", "headers": []}, client.receive, client.send))
    while not pipeline.busy:
        await asyncio.sleep(0)
    replying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await replying
    assert pipeline.busy == 0
