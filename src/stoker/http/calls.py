"""Jobs' requests: each read as its route reads it, and answered with the bytes that its route would send."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from stoker.admission.auth import Caller
from stoker.http import schemas
from stoker.http.gathering import gathered
from stoker.http.parse import Reader, read_body, refuse_dimensions
from stoker.http.query import QueryRenderer
from stoker.http.render import ChatRenderer, CompletionRenderer, Renderer, embedding_list
from stoker.jobs.calls import Call, Tell
from stoker.observability.record import Record
from stoker.pipeline import Pipeline
from stoker.types import Chunk, EmbeddingRequest, GenerationRequest, Priority

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
QUERY: Final = "/query"

_DATA: Final = b"data: "
_Asked = TypeVar("_Asked", GenerationRequest, EmbeddingRequest)


@dataclass(frozen=True, slots=True)
class _Asker:
    """Who asks, and the headers that this one sent along."""

    caller: Caller
    headers: Mapping[str, str]


class WireTranslator:
    """Reads jobs' requests with the routes' own reader, and makes them through the pipeline.

    Args:
        pipeline: where answers come from.
        reader: makes requests from wire forms.
    """

    endpoints: frozenset[str] = frozenset({QUERY, CHAT, COMPLETIONS, EMBEDDINGS})

    def __init__(self, pipeline: Pipeline, reader: Reader) -> None:
        self._pipeline = pipeline
        self._reader = reader

    def read(self, endpoint: str, body: bytes, caller: Caller, headers: Mapping[str, str], deadline: float) -> Call:
        """The call that a body asks of one of `endpoints`; see `Translator`."""
        if endpoint == CHAT:
            return self._chat(body, _Asker(caller, headers), deadline)
        if endpoint == COMPLETIONS:
            return self._completions(body, _Asker(caller, headers), deadline)
        if endpoint == EMBEDDINGS:
            return self._embeddings(body, _Asker(caller, headers), deadline)
        return self._query(body, _Asker(caller, headers), deadline)

    def _chat(self, raw: bytes, asker: _Asker, deadline: float) -> Call:
        body = read_body(schemas.ChatRequest, raw)
        ignored = self._reader.unknown_fields(body)
        asked = self._reader.chat(body, asker.headers, asker.caller.principal)
        request = _as_job(asked, body.timeout, deadline)
        return self._generation([request], asker, lambda _: ChatRenderer(request, include_usage=False), ignored)

    def _completions(self, raw: bytes, asker: _Asker, deadline: float) -> Call:
        body = read_body(schemas.CompletionRequest, raw)
        ignored = self._reader.unknown_fields(body)
        asked = self._reader.completions(body, asker.headers, asker.caller.principal)
        requests = [_as_job(one, body.timeout, deadline) for one in asked]
        return self._generation(
            requests, asker, lambda _: CompletionRenderer(requests[0], include_usage=False), ignored
        )

    def _query(self, raw: bytes, asker: _Asker, deadline: float) -> Call:
        body = read_body(schemas.QueryRequest, raw)
        request = _as_job(self._reader.query(body, asker.headers, asker.caller.principal), body.timeout, deadline)
        return self._generation([request], asker, lambda record: QueryRenderer(request.id, record))

    def _generation(
        self,
        requests: Sequence[GenerationRequest],
        asker: _Asker,
        renderer_for: Callable[[Record], Renderer],
        ignored: tuple[str, ...] = (),
    ) -> Call:
        async def run(record: Record, tell: Tell) -> bytes:
            record.ignored = ignored
            renderer = renderer_for(record)
            calls = self._pipeline.ready(requests, asker.caller, asker.headers, record)
            identity = record.served()
            _tell_event(tell, renderer.begin(identity))

            def heard(index: int, chunk: Chunk) -> None:
                _tell_event(tell, renderer.event(index, chunk))

            answers = await gathered(self._pipeline, calls, record, heard)
            return renderer.whole(identity, answers, record.usage)

        return Call(requests, None, run)

    def _embeddings(self, raw: bytes, asker: _Asker, deadline: float) -> Call:
        body = read_body(schemas.EmbeddingsRequest, raw)
        refuse_dimensions(body)
        asked = self._reader.embeddings(body, asker.headers, asker.caller.principal)
        request = _as_job(asked, body.timeout, deadline)

        async def run(record: Record, _tell: Tell) -> bytes:
            vectors = await self._pipeline.vectors(request, asker.caller, asker.headers, record)
            return embedding_list(vectors, body.encoding_format, record)

        return Call((), request, run)


def _as_job(request: _Asked, timeout: float | None, deadline: float) -> _Asked:
    """The request in the jobs' class: it has until `deadline`, unless its body asks for fewer seconds."""
    if timeout is not None:
        deadline = min(deadline, time.monotonic() + timeout)
    return dataclasses.replace(request, deadline=deadline, priority=Priority.JOB)


def _tell_event(tell: Tell, event: bytes) -> None:
    """Pass on the JSON that a server-sent event holds; a renderer's nothing is nothing."""
    if event:
        tell(event.removeprefix(_DATA).rstrip())
