"""Lookups of names stand beside the event loop, are bounded, and may be left."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from stoker.jobs.lookup import SystemLookup


async def test_addresses_come_once_each(monkeypatch) -> None:
    def found(host, port, **options):
        assert (host, port, options["type"]) == ("hooks.example", 443, socket.SOCK_STREAM)
        six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:4700::1", port, 0, 0))
        four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))
        return [six, four, four]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert await SystemLookup()("hooks.example", 443) == ["2606:4700::1", "8.8.8.8"]


async def test_a_name_without_address_is_an_os_error(monkeypatch) -> None:
    def none(*_arguments, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", none)
    with pytest.raises(OSError, match="not known"):
        await SystemLookup()("hooks.example", 443)


async def test_a_name_that_python_cannot_encode_is_an_os_error() -> None:
    with pytest.raises(OSError, match="label"):
        await SystemLookup()("ü" * 70 + ".example", 443)


async def test_a_system_without_threads_is_an_os_error(monkeypatch) -> None:
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    lookup = SystemLookup(1)
    for _ in range(3):  # the place is given back
        with pytest.raises(OSError, match="thread"):
            await lookup("hooks.example", 443)


async def test_lookups_are_bounded_and_can_be_left(monkeypatch) -> None:
    gate, running, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def slow(_host, port, **_options):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(60)
        with lock:
            running -= 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    lookup = SystemLookup(2)
    tasks = [asyncio.create_task(lookup("hooks.example", 443)) for _ in range(6)]
    async with asyncio.timeout(20):
        while running < 2:
            await asyncio.sleep(0.005)  # the loop runs on meanwhile
    for task in tasks[:3]:  # two that run and one that waits
        task.cancel()
    left = await asyncio.gather(*tasks[:3], return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in left)
    assert not any(task.done() for task in tasks[3:])  # a lookup that was left still has its place
    gate.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(*tasks[3:]) == [["8.8.8.8"]] * 3
    assert most == 2


def test_a_lookup_that_hangs_does_not_outlive_its_loop(monkeypatch) -> None:
    gate, ended = threading.Event(), threading.Event()

    def hang(*_arguments, **_options):
        gate.wait(60)
        ended.set()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(SystemLookup()("hooks.example", 443), 0.05)

    asyncio.run(leave())  # returns though the thread hangs
    (thread,) = [one for one in threading.enumerate() if one.name == "webhook-lookup"]
    assert thread.daemon  # so that it cannot hold up the end of the process
    gate.set()
    thread.join(20)
    assert ended.is_set()
    assert not thread.is_alive()
