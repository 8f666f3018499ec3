"""What the gateway and its backup process tell each other."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from stoker.backup.order import Order, Result
from stoker.backup.schedule import Times, run_child
from stoker.config import Settings

SCRATCH = Path("/tmp/scratch")
SECRETS = ["the passphrase", "an upstream key", "canary words"]
EXAMPLE = {
    "data_dir": "/srv/stoker",
    "models": [
        {"name": "small", "source": "small@1"},
        {"name": "far", "upstream": "https://far.example", "upstream_key": SECRETS[1]},
    ],
    "keys": [{"name": "user", "hash": "sha256:" + "ab" * 32, "expires": "2030-01-01T00:00:00Z"}],
    "guard": {"mode": "block", "secrets": [SECRETS[2]]},
    "backup": {"repository": "/srv/backups", "schedule": "0 3 * * *", "key": SECRETS[0]},
}


def child(code: str) -> list[str]:
    """A program in place of the backup's."""
    return [sys.executable, "-c", f"import os, sys, time\norder = sys.stdin.buffer.readline()\n{code}"]


def order() -> Order:
    return Order(Settings(**EXAMPLE), Path("/etc/stoker.yaml"))


class TestOrder:
    def test_settings_arrive_with_their_secrets(self) -> None:
        sent = order()
        got, scratch = Order.decode(sent.encode(SCRATCH))
        assert scratch == SCRATCH
        assert got.settings.model_dump() == sent.settings.model_dump()
        assert got.settings.model_dump(exclude_unset=True) == sent.settings.model_dump(exclude_unset=True)
        assert got.config_file == sent.config_file
        assert got.settings.backup.key is not None
        assert got.settings.backup.key.get_secret_value() == SECRETS[0]

    def test_it_is_one_line(self) -> None:
        assert order().encode(SCRATCH).count(b"\n") == 1

    def test_the_environment_changes_nothing_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        line = order().encode(SCRATCH)
        monkeypatch.setenv("STOKER_BACKUP__REPOSITORY", "/elsewhere")
        monkeypatch.setenv("STOKER_PORT", "1")
        got = Order.decode(line)[0].settings
        assert got.backup.repository == "/srv/backups"
        assert got.port == 8080


class TestResult:
    @pytest.mark.parametrize(
        "result", [Result(ok=True, snapshot="s", size_bytes=7, seconds=0.5, removed=2), Result(ok=False, reason="why")]
    )
    def test_it_arrives_as_it_was_sent(self, result: Result) -> None:
        assert Result.decode(result.encode()) == result

    @pytest.mark.parametrize("line", [b"", b"{", b"3", b"null", b"[]", b'{"ok": true, "more": 1}', b"words", b"{}"])
    def test_anything_else_is_none(self, line: bytes) -> None:
        with pytest.raises(ValueError, match=r".*"):
            Result.decode(line)


class TestRunning:
    async def test_the_last_line_counts(self) -> None:
        command = child('print(\'talk\')\nprint(\'{"ok": true, "snapshot": "s"}\')')
        assert await run_child(order(), Times(), command) == Result(ok=True, snapshot="s")

    async def test_no_secret_is_in_an_argument_or_the_environment(self) -> None:
        code = """
import json
seen = open('/proc/self/cmdline', 'rb').read() + open('/proc/self/environ', 'rb').read()
print(json.dumps({'ok': False, 'reason': seen.decode(errors='replace')}))"""
        told = (await run_child(order(), Times(), child(code))).reason
        assert "python" in told
        assert not [secret for secret in SECRETS if secret in told]

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("sys.exit(7)", "status 7"),
            (f"os.kill(os.getpid(), {int(signal.SIGKILL)})", "signal 9"),
            ("print('no result')", "no result"),
        ],
    )
    async def test_one_that_leaves_no_result_failed(self, code: str, words: str) -> None:
        result = await run_child(order(), Times(), child(code))
        assert not result.ok
        assert words in result.reason

    async def test_one_that_never_reads_its_order_failed(self) -> None:
        big = Order(Settings(guard={"secrets": ["x" * 100 + str(n) for n in range(20_000)]}))
        result = await run_child(big, Times(), [sys.executable, "-c", "raise SystemExit(3)"])
        assert "status 3" in result.reason

    async def test_one_that_floods_its_output_fills_no_memory(self) -> None:
        code = "for _ in range(64): print('x' * (1 << 18))\nprint('{\"ok\": true}')"
        assert (await run_child(order(), Times(), child(code))).ok

    async def test_a_program_that_is_not_there(self) -> None:
        assert "cannot be started" in (await run_child(order(), Times(), ["/no/such/program"])).reason

    async def test_one_that_takes_too_long_is_ended(self, tmp_path: Path) -> None:
        mark = tmp_path / "pid"
        code = f"open({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
        result = await run_child(order(), Times(limit=1.0, stop_grace=0.1), child(code))
        assert "took longer" in result.reason
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.read_text()), 0)
