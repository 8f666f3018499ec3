"""`stoker query` and `stoker chat`: ask a running server from the terminal."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

Url = Annotated[str, typer.Option("--url", "-u", envvar="STOKER_URL", help="The server's address.")]
Key = Annotated[str | None, typer.Option("--api-key", envvar="STOKER_API_KEY", help="API key, if it wants one.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Model to ask. Default: the server's.", show_default=False)
]
DEFAULT_URL = "http://127.0.0.1:8080"


def query(
    text: Annotated[str | None, typer.Argument(help="What to ask; `-` or nothing reads standard input.")] = None,
    *,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="Instructions before the question.", show_default=False)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.", show_default=False)] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is deterministic.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer object.")] = False,
) -> None:
    """Ask one question.

    For example:

    - `stoker query "Why is the sky blue?"`

    - `git diff | stoker query - --system "Summarise this change."`
    """
    _read_anything()
    question = sys.stdin.read() if text in {None, "-"} else text
    body: dict[str, Any] = {"text": question, "temperature": temperature, "stream": not as_json}
    body |= {k: v for k, v in {"model": model, "system": system, "max_tokens": max_tokens}.items() if v is not None}
    if as_json:
        typer.echo(asyncio.run(_post(url, api_key, "/query", body)))
    else:
        asyncio.run(_print_stream(_events(url, api_key, "/query", body)))


def chat(
    *,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="Instructions for the conversation.", show_default=False)] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Default: the model's.", show_default=False)
    ] = None,
) -> None:
    """Talk with the model; answers stream as they are made.

    `/reset` forgets the conversation, Ctrl-C cuts an answer short, Ctrl-D ends.
    """
    from stoker.errors import StokerError

    _read_anything()
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    opening = len(messages)
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if said.strip() == "/reset":
            del messages[opening:]
            continue
        if not said.strip():
            continue
        messages.append({"role": "user", "content": said})
        body: dict[str, Any] = {"messages": messages, "stream": True}
        body |= {k: v for k, v in {"model": model, "temperature": temperature}.items() if v is not None}
        try:
            answer = asyncio.run(_print_stream(_events(url, api_key, "/v1/chat/completions", body)))
        except KeyboardInterrupt:
            typer.echo()
            messages.pop()
            continue
        except StokerError as error:
            if not sys.stdin.isatty():
                raise
            typer.secho(f"stoker: {error.message}", err=True, fg=typer.colors.RED)  # the conversation can go on
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer})


def _read_anything() -> None:
    """Bytes on standard input that are no UTF-8 become replacement characters; half characters are no JSON."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


async def _print_stream(pieces: AsyncIterator[str]) -> str:
    """Write pieces as they come; the whole text."""
    answer = []
    async for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        answer.append(piece)
    sys.stdout.write("\n")
    return "".join(answer)


async def _events(url: str, key: str | None, path: str, body: dict[str, Any]) -> AsyncIterator[str]:
    """The pieces of text in a streamed answer of either route; StokerError for what the server refuses."""
    import orjson

    from stoker.errors import StokerError

    event = ""
    async with _session(key) as session, _send(session, url, path, body) as response:
        if response.status != 200:  # noqa: PLR2004 - HTTP OK
            raise _refused(response.status, await response.read())
        async for line in response.content:
            text = line.strip()
            if text.startswith(b"event:"):
                event = text[6:].strip().decode()
            if not text.startswith(b"data:") or text == b"data: [DONE]":
                continue
            data = orjson.loads(text[5:])
            if event == "error" or "error" in data:
                raise StokerError(f"the answer broke off: {data.get('detail') or data['error']['message']}")
            if event == "done":
                continue
            choices = data.get("choices")
            piece = data.get("text") if choices is None else choices and choices[0]["delta"].get("content")
            if piece:
                yield piece


async def _post(url: str, key: str | None, path: str, body: dict[str, Any]) -> str:
    async with _session(key) as session, _send(session, url, path, body) as response:
        raw = await response.read()
        if response.status != 200:  # noqa: PLR2004 - HTTP OK
            raise _refused(response.status, raw)
        return str(raw, "utf-8")


def _session(key: str | None) -> Any:
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=None, connect=5))


class _send:  # noqa: N801 - reads as a verb where it is used
    """A POST whose failure to connect is told in words."""

    def __init__(self, session: Any, url: str, path: str, body: dict[str, Any]) -> None:
        self._url = url.rstrip("/")
        self._request = session.post(self._url + path, json=body)

    async def __aenter__(self) -> Any:
        import aiohttp

        from stoker.cli.client import unreachable

        try:
            return await self._request.__aenter__()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise unreachable(self._url, error) from None

    async def __aexit__(self, *details: object) -> None:
        await self._request.__aexit__(*details)


def _refused(status: int, raw: bytes) -> Exception:
    from stoker.cli.client import error_in
    from stoker.errors import StokerError

    message = error_in(raw).get("message") or raw[:300].decode("utf-8", "replace")
    return StokerError(f"the server answered {status}: {message}")
