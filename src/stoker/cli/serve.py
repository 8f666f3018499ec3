"""`stoker serve`: start a server, and tell people what is happening."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stoker.config import Settings
    from stoker.lineup import PlannedModel
    from stoker.service import Service


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A GGUF file, a stored name[@version], or an address (hf:, https:, s3:). Default: as configured.",
            show_default=False,
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Configuration file. Default: stoker.yaml, if there.", show_default=False),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", help="TCP port; 0 lets the system choose.", show_default="8080")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where models are kept.", show_default=False)] = None,
    allow_public: Annotated[
        bool | None, typer.Option("--allow-public", help="Listen beyond loopback without keys.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads that compute. Default: planned.", show_default=False)
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Requests worked on at once. Default: planned.", show_default=False)
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens for each slot. Default: planned.", show_default=False)
    ] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(help="Layers on the GPU; -1 for all. Default: planned.", show_default=False)
    ] = None,
    memory_mib: Annotated[
        int | None, typer.Option(help="Memory the model may take. Default: what is granted.", show_default=False)
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default="info")] = None,
    log_format: Annotated[str | None, typer.Option(help="json, console or auto.", show_default="auto")] = None,
) -> None:
    """Serve a model behind an OpenAI-compatible API, until Ctrl-C or SIGTERM.

    For example:

    - `stoker serve ./SmolLM2-135M-Instruct.Q4_1.gguf`

    - `stoker serve smollm2@2 --port 9000 --slots 4`

    - `stoker serve --config stoker.yaml`
    """
    import asyncio

    import uvloop
    from rich.console import Console

    from stoker.config import load, origin_of
    from stoker.observability.logging import configure

    flags = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "allow_public": allow_public,
        "plan": {
            "threads": threads,
            "slots": slots,
            "context": context,
            "gpu_layers": gpu_layers,
            "memory_mib": memory_mib,
        },
        "log": {"level": log_level, "format": log_format},
    }
    settings = load(config, flags)
    if model is not None:
        settings = _only(settings, model, config, flags)
    console = Console(stderr=True, highlight=False)
    configure(settings.log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, console, origin_of(config)))


async def _serve(settings: Settings, console: Console, config_file: Path | None) -> None:
    import asyncio

    from stoker.admission.addresses import is_loopback
    from stoker.admission.auth import KeyRing
    from stoker.cli.progress import watching
    from stoker.errors import StartupError
    from stoker.http.server import Announcer, bind, serve, url_of
    from stoker.lineup import line_up

    if not is_loopback(settings.host) and not KeyRing(settings).required:
        if not settings.allow_public:
            raise StartupError(
                f"host {settings.host} can be reached from other machines and no API key is needed; make one "
                "(`stoker keys create NAME`), listen on 127.0.0.1, or say --allow-public (STOKER_ALLOW_PUBLIC=true)"
            )
        open_to_all = f"whoever reaches {settings.host} may use every model: no API key is needed"
        console.print(f"[yellow]warning:[/] {open_to_all}", soft_wrap=True)
    began = time.monotonic()
    listener = bind(settings.host, settings.port)
    monitoring = (
        None if settings.monitor.port is None else bind(settings.monitor.host, settings.monitor.port, "monitor")
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _end_unprepared)
    with watching("preparing") as progress:
        models = await asyncio.to_thread(line_up, settings, progress)
    teller = _Teller(console, models, began)
    if monitoring is not None:
        console.print(f"metrics and health at {url_of(monitoring)}", soft_wrap=True)
    announcer = Announcer(teller.listening, teller.ready, teller.stopping)
    await serve(settings, models, listener, announcer, monitoring=monitoring, config_file=config_file)
    with contextlib.suppress(OSError, SystemExit):  # rich ends programs whose reader has gone
        console.print("stopped")


def _end_unprepared() -> None:
    """SIGTERM before there is anything to finish. As process 1 of a container nobody else would end us, and a download
    that is cut off is taken up again at the next start.
    """
    sys.stderr.write("stopped while preparing\n")
    os._exit(128 + signal.SIGTERM)


def _only(settings: Settings, model: str, config: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings with one model alone: a configured one by its name, else the file, stored name or address."""
    from stoker.config import load
    from stoker.models.names import name_from_file, parse_reference

    chosen = [entry.model_dump(exclude_unset=True) for entry in settings.models if entry.name == model]
    stored = None if model.endswith(".gguf") else parse_reference(model)
    name = stored.name if stored else name_from_file(model.rsplit("/", 1)[-1])
    entries = chosen or [{"name": name, "source": model}]
    alone = {"models": entries, "default_model": entries[0]["name"], "routing": {"experts": ()}}
    return load(config, {**flags, **alone})


class _Teller:
    """Says on the terminal what the server is doing."""

    def __init__(self, console: Console, models: tuple[PlannedModel, ...], began: float) -> None:
        self._console = console
        self._models = models
        self._began = began
        self._url = ""

    def listening(self, url: str) -> None:
        """The port is open, engines are loading: show the plans."""
        self._url = url
        for model in self._models:
            identity, plan = model.identity, model.plan
            if plan is None:
                self._say(f"[bold]{identity.name}[/]  by {model.config.upstream}")
                continue
            file = model.path.name if model.path and model.path.suffix else ""  # stored files are named by digest
            self._say(f"[bold]{identity.name}@{identity.version}[/]  sha256:{identity.digest[:12]}  {file}")
            where = "CPU" if plan.gpu_layers == 0 else f"{plan.gpu_layers} layers on the GPU"
            self._say(
                f"  plan: {where}, {plan.threads} threads, {plan.slots} slots of {plan.context} tokens, "
                f"prompts in steps of {plan.batch}; "
                f"memory {plan.needed_bytes / 2**20:,.0f} of {plan.granted_bytes / 2**20:,.0f} MiB"
            )
            for step in plan.shrunk:
                self._say(f"  [yellow]made smaller:[/] {step.setting} {step.value}: {step.why}")
        self._say("loading ...")

    def ready(self, service: Service) -> None:
        """Every model answers: show how to ask."""
        model = next(iter(service.pools))
        question = "What is the capital of Germany?"
        chat = orjson.dumps({"model": model, "messages": [{"role": "user", "content": question}]}).decode()
        seconds = time.monotonic() - self._began
        self._say(f"[green bold]ready[/] after {seconds:.1f} s at [bold]{self._url}[/]  (API: {self._url}/docs)\ntry:")
        for path, body in (("/query", f'{{"text": "{question}"}}'), ("/v1/chat/completions", chat)):
            self._say(f"  curl {self._url}{path} -H 'content-type: application/json' -d '{body}'", markup=False)

    def stopping(self, busy: int) -> None:
        """A signal came."""
        waiting = f"finishing {busy} requests (again to end them now)" if busy else "nothing to finish"
        self._say(f"stopping: {waiting}")

    def _say(self, text: str, *, markup: bool = True) -> None:
        """A line as it is, never folded: people copy from it. Where nobody reads any more, the server goes on."""
        with contextlib.suppress(OSError, SystemExit):  # rich ends programs whose reader has gone
            self._console.print(text, markup=markup, soft_wrap=True)
