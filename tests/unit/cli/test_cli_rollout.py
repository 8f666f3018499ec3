"""`stoker rollout` against a small server whose rollouts go on by a script."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import Result
from rich.console import Console
from rich.live import Live
from rollouts_server import PLAN, RolloutsServer, level
from typer.testing import CliRunner

from stoker.cli import client, rollout, rollout_client, rollout_view
from stoker.cli.main import app
from stoker.errors import OperatorError, StokerError

GOOD = [
    {"phase": "warming"},
    {"phase": "evaluating"},
    {"progress": {"done": 3, "total": 40}},
    {"phase": "baking", "note": "serves everybody"},
    {"progress": {"before": level(90), "after": level(30, 0.0, 0.061), "seconds_left": 60.0}},
    {"phase": "retiring"},
    {"phase": "succeeded", "note": "chat@2 serves"},
]


@pytest.fixture
def server() -> Iterator[RolloutsServer]:
    with RolloutsServer().running() as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOKER_URL", "STOKER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(server: RolloutsServer, verb: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["rollout", verb, *arguments, "--url", server.url])


def words_of(result: Result) -> str:
    """What the error says, which only the program's main prints."""
    assert isinstance(result.exception, StokerError), result.output
    return result.exception.message


def test_start_follows_to_the_end(server: RolloutsServer) -> None:
    server.script = list(GOOD)
    result = run(server, "start", "chat@2")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("chat@2 serves chat; the rollout took ")
    assert server.orders == [{"model": "chat@2"}]
    lines = result.stderr.splitlines()
    assert lines[0] == "rol-1: chat from chat@1 (111111111111) to chat@2 (222222222222)"
    phases = [line[10:].split()[0] for line in lines[1:]]
    assert phases == ["loading", "warming", "evaluating", "baking", "retiring", "succeeded"]
    assert "serves everybody" in lines[4]
    assert [poll["revision"] for poll in server.polls] == [str(number) for number in range(1, 8)]


def test_start_says_all_that_it_is_told(server: RolloutsServer, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("cases:\n- prompt: What is 2 + 2?\n  expect_any: ['4', four]\n")
    result = run(
        server,
        *("start", "chat-q4@2", "--serves", "chat", "--set", str(file), "--manual", "--canary", "10%"),
        *("--canary-time", "5m", "--bake", "1.5h", "--accept-gap", "--detach"),
    )
    assert (result.exit_code, result.stdout) == (0, "rol-1\n")
    (order,) = server.orders
    evaluation = order.pop("evaluation")
    assert order == {
        "model": "chat-q4@2",
        "serves": "chat",
        "promotion": "manual",
        "canary": 0.1,
        "canary_time": 300.0,
        "bake": 5400.0,
        "accept_gap": True,
    }
    assert evaluation["name"] == "mine"
    assert evaluation["cases"] == [{"id": "1", "prompt": "What is 2 + 2?", "expect": {"contains_any": ["4", "four"]}}]
    assert not server.polls


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (("--canary", "0"), "canary", 0.0),
        (("--canary", "0.25"), "canary", 0.25),
        (("--canary-time", "90"), "canary_time", 90.0),
        (("--bake", "0"), "bake", 0.0),
        (("--bake", "45s"), "bake", 45.0),
        (("--auto",), "promotion", "auto"),
        (("--skip-evaluation",), "skip_evaluation", True),
    ],
)
def test_amounts(arguments: tuple[str, ...], field: str, value: Any, server: RolloutsServer) -> None:
    assert run(server, "start", "chat@2", "--detach", *arguments).exit_code == 0
    assert server.orders == [{"model": "chat@2", field: value}]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--canary", "100%"),
        ("--canary", "-1"),
        ("--canary", "nan"),
        ("--canary", "some"),
        ("--bake", "10x"),
        ("--bake", "-5m"),
        ("--bake", "9" * 30),
        ("--wait-for", "ever"),
    ],
)
def test_mistakes_have_status_2(arguments: tuple[str, ...], server: RolloutsServer) -> None:
    assert run(server, "start", "chat@2", *arguments).exit_code == 2
    assert not server.orders


def test_a_set_that_is_none_is_told_before_anything_is_sent(server: RolloutsServer, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("cases: 7")
    for path in (file, tmp_path / "missing.yaml"):
        result = run(server, "start", "chat@2", "--set", str(path))
        assert isinstance(result.exception, OperatorError)
        assert path.name in result.exception.message
    assert not server.orders


def test_a_dry_run_tells_the_plan(server: RolloutsServer) -> None:
    result = run(server, "start", "chat@2", "--dry-run")
    assert result.exit_code == 0
    assert server.orders == [{"model": "chat@2", "dry_run": True}]
    assert result.stdout.splitlines() == [
        "chat from chat@1 (111111111111) to chat@2 (222222222222)",
        "both fit: it needs 512 MB, and 2.0 GB are granted",
        "1. load and warm the new version beside the running one",
        "2. give it to everybody in one step",
    ]
    assert json.loads(run(server, "start", "chat@2", "--dry-run", "--json").stdout)["fits"] is True


def test_a_plan_that_does_not_fit() -> None:
    plan = {
        **PLAN,
        "fits": False,
        "message": "needs 3 GB of 2; \x1b[31m--accept-gap",
    }
    lines = list(rollout_view.plan_lines(plan))
    assert lines[1] == "needs 3 GB of 2; ?[31m--accept-gap"


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("refused", "rollout rol-1 was refused: 3 of 20; chat@1 serves chat"),
        ("failed", "rollout rol-1 failed: 3 of 20; chat@1 serves chat"),
        ("rolled_back", "rollout rol-1 was rolled back: 3 of 20; chat@1 serves chat"),
        ("aborted", "rollout rol-1 was aborted: 3 of 20; chat@1 serves chat"),
    ],
)
def test_other_ends_have_status_1(phase: str, words: str, server: RolloutsServer) -> None:
    server.script = [{"phase": "evaluating"}, {"phase": phase, "note": "3 of 20"}]
    result = run(server, "start", "chat@2")
    assert words_of(result) == words
    assert result.exit_code == 1
    assert not result.stdout
    server.script = [{"phase": phase}]
    whole = run(server, "start", "chat@2", "--json")
    assert json.loads(whole.stdout)["phase"] == phase
    assert whole.exit_code == 1


def test_start_may_be_followed_to_the_switch_only(server: RolloutsServer) -> None:
    server.script = list(GOOD)
    result = run(server, "start", "chat@2", "--wait-for", "baking")
    assert result.exit_code == 0
    assert result.stdout == "chat@2 serves chat; `stoker rollout rollback` brings the old one back\n"
    assert len(server.polls) == 4


def test_or_to_where_it_waits(server: RolloutsServer) -> None:
    server.script = [{"phase": "evaluating"}, {"phase": "waiting"}]
    result = run(server, "start", "chat@2", "--manual", "--wait-for", "waiting")
    assert "stoker rollout promote" in result.stdout
    server.script = [{"phase": "canary"}]
    assert "stoker rollout rollback" in run(server, "start", "chat@2", "--wait-for", "waiting").stdout


def test_a_refused_start(server: RolloutsServer) -> None:
    server.refusals = [(409, "does_not_fit", "needs 3 GB of 2 GB; accept a gap with --accept-gap")]
    assert words_of(run(server, "start", "chat@2")) == (
        "the server answered 409: needs 3 GB of 2 GB; accept a gap with --accept-gap"
    )
    server.refusals = [(404, "model_not_found", "there is no chat@2")]
    assert words_of(run(server, "start", "chat@2")) == "the server answered 404: there is no chat@2"
    assert not server.orders


def test_a_lost_answer_starts_nothing_twice(server: RolloutsServer) -> None:
    server.lose = 1
    words = words_of(run(server, "start", "chat@2"))
    assert len(server.orders) == 1
    assert "stoker rollout status" in words


def test_a_server_that_goes_away_meanwhile_is_waited_for(server: RolloutsServer) -> None:
    server.away = 4  # more than the client's library tries by itself
    server.script = [{"phase": "warming"}, {"revision": -5, "phase": "loading"}, {"phase": "succeeded"}]
    result = run(server, "start", "chat@2")
    assert result.exit_code == 0
    assert "trying again" in result.stderr


def test_an_interrupt_leaves_the_rollout(server: RolloutsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout_client.Rollouts, "news", interrupted)
    result = run(server, "start", "chat@2")
    assert result.exit_code == client.INTERRUPTED
    assert "stoker rollout status rol-1 --follow" in result.stderr
    assert not server.acts


def test_status_is_of_the_one_under_way_or_else_of_the_latest(server: RolloutsServer) -> None:
    assert "stoker rollout start" in words_of(run(server, "status"))
    server.add("succeeded")
    server.add("baking", until=10e9, warm=True, progress={"before": level(9), "after": level(7, 1 / 7, None)})
    server.add("refused")
    stdout = run(server, "status").stdout
    for words in (
        "rol-2",
        "chat@1 (111111111111)",
        "baking, ",
        "7 requests, 14.3% failed, - to the first token",
        "by ops",
        "smoke",
        "loaded as well",
    ):
        assert words in stdout, words
    server.rollouts["rol-2"] |= {"ended": True, "phase": "succeeded"}
    assert "rol-3" in run(server, "status").stdout
    assert "rol-1" in run(server, "status", "rol-1").stdout
    assert json.loads(run(server, "status", "rol-1", "--json").stdout)["phase"] == "succeeded"
    assert "stoker rollout history" in words_of(run(server, "status", "rol-9"))
    assert "no such rollout" in words_of(run(server, "status", "../../jobs"))


def test_status_shows_which_cases_failed(server: RolloutsServer) -> None:
    results = [
        {"id": f"c{number}", "outcome": "failed", "failures": ["4 does not occur"], "answer": "it is\n\x1b[2Jfive"}
        for number in range(12)
    ]
    good = {"id": "good", "outcome": "passed", "failures": [], "answer": "yes"}
    report = {"verdict": {"passed": False}, "passed": 1, "cases": 13, "results": [good, *results]}
    server.add("refused", reason="pass rate 8 %", evaluation=report)
    stdout = run(server, "status").stdout
    assert "smoke: not passed, 1 of 13 cases" in stdout
    assert "case c0: 4 does not occur; it said 'it is \\x1b[2Jfive'" in stdout
    assert "and 2 more; --json shows them" in stdout
    assert "good" not in stdout
    assert "\x1b" not in stdout
    report["verdict"] = {"passed": True}
    stdout = run(server, "status").stdout
    assert "smoke: passed, 1 of 13 cases" in stdout
    assert "c0" not in stdout


def test_status_can_follow(server: RolloutsServer) -> None:
    server.add("warming")
    server.script = list(GOOD[1:])
    result = run(server, "status", "--follow")
    assert result.exit_code == 0
    assert "chat@2 serves chat" in result.stdout
    server.add("refused", reason="no good")
    assert "no good" in words_of(run(server, "status", "rol-2", "--follow"))


@pytest.mark.parametrize(("verb", "phase"), [("promote", "baking"), ("rollback", "rolled back"), ("abort", "aborted")])
def test_acts_are_about_the_one_under_way(verb: str, phase: str, server: RolloutsServer) -> None:
    server.add("waiting")
    server.add("succeeded")
    result = run(server, verb)
    assert result.exit_code == 0
    assert server.acts == [(verb, "rol-1")]
    assert phase in result.stdout
    server.rollouts["rol-1"]["phase"] = "canary"
    assert json.loads(run(server, verb, "rol-1", "--json").stdout)["id"] == "rol-1"
    server.refusals = [(409, "rollout_conflict", "the rollout has ended")]
    assert words_of(run(server, verb, "rol-1")) == "the server answered 409: the rollout has ended"


@pytest.mark.parametrize("verb", ["promote", "rollback", "abort"])
def test_without_one_under_way_the_way_is_shown(verb: str, server: RolloutsServer) -> None:
    assert "stoker rollout start NAME@VERSION" in words_of(run(server, verb))
    server.add("refused")
    assert "stoker rollout start NAME@VERSION" in words_of(run(server, verb))
    server.add("succeeded")
    assert "`stoker rollout start chat@1 --serves chat`" in words_of(run(server, verb))
    assert not server.acts


def test_history(server: RolloutsServer) -> None:
    assert "there has been no rollout" in run(server, "history").stdout
    server.add("succeeded", reason="chat@2 serves")
    server.add("refused", reason="pass rate 8 %, at least 90 % wanted")
    lines = run(server, "history").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["id", "rol-2", "rol-1"]
    assert "pass rate 8 %" in lines[1]
    assert "serves" not in lines[2]
    assert [one["id"] for one in json.loads(run(server, "history", "--json").stdout)["data"]] == ["rol-2", "rol-1"]


def test_keys(server: RolloutsServer) -> None:
    server.key = "very-secret"
    words = words_of(run(server, "history", "--api-key", "another"))
    assert "stoker keys create NAME --scope admin" in words
    assert "another" not in words
    assert run(server, "history", "--key", "very-secret").exit_code == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
def test_no_server(url: str) -> None:
    result = CliRunner().invoke(app, ["rollout", "start", "chat@2", "--url", url])
    assert "stoker serve" in words_of(result)


async def test_a_server_without_rollouts() -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with rollout_client.Rollouts(url, None, client.Patience(), lambda _: None) as there:
            for call in (there.history(), there.start(b"{}"), there.act("rol-1", "abort")):
                with pytest.raises(client.Refused, match="knows no rollouts"):
                    await call
    finally:
        await runner.cleanup()


def test_a_terminal_shows_what_happens_now() -> None:
    told = io.StringIO()
    console = Console(file=told, width=100, force_terminal=True, color_system=None)
    document = RolloutsServer().add("evaluating", progress={"done": 3, "total": 40})
    with Live(console=console, auto_refresh=False) as live:
        screen = rollout_view.Screen(live)
        for change in (
            {},
            {"phase": "baking", "until": 10e9, "progress": {"before": level(90), "after": level(30, 0.5)}},
            {"phase": "succeeded", "ended": True},
        ):
            screen.show(document | change)
            live.refresh()
    shown = told.getvalue()
    for words in (
        "rol-1: chat from chat@1",
        "evaluating",
        "3 of 40 answers",
        "chat@2",
        "50%",
        "50 ms",
        "so far",
        "left",
    ):
        assert words in shown, words


def test_pipes_get_figures_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = rollout_view.Lines()
    document = RolloutsServer().add("evaluating", progress={"done": 3, "total": 40})
    lines.show(document)
    lines.show(document | {"progress": {"done": 4, "total": 40}})
    assert "answers" not in capsys.readouterr().err
    monkeypatch.setattr(rollout_view, "TOLD_EVERY_S", 0.0)
    lines.show(document | {"progress": {"done": 5, "total": 40}})
    assert "5 of 40 answers" in capsys.readouterr().err


def test_every_way_to_follow_knows_its_phases() -> None:
    assert set(rollout.PHASES) == set(rollout.Reached)
