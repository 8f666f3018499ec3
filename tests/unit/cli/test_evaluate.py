"""`stoker evaluate`: who is asked with which key, and what a terminal is shown."""

from __future__ import annotations

import pytest
from rich.console import Console

from stoker.cli.evaluate import Target, check_outputs, judge_for, other_of, read_set, target_of
from stoker.cli.evaluated import plain, shown
from stoker.errors import ConfigError, OperatorError
from stoker.evaluation.asking import Reply
from stoker.evaluation.report import CaseResult, Report
from stoker.evaluation.sets import BadSet, Thresholds, parse_set
from stoker.evaluation.verdict import judge_report

JUDGED = [{"prompt": "a", "expect": {"judge": {"criteria": "kind"}}}]


def test_who_is_asked(monkeypatch):
    monkeypatch.setenv("STOKER_URL", "http://there")
    assert target_of("http://here", "chat", "k") == Target("http://here", "chat", "k")
    assert target_of(None, "chat@2", "k") == Target(None, "chat@2")
    assert target_of(None, None, "k") == Target("http://there", "", "k")
    monkeypatch.delenv("STOKER_URL")
    assert target_of(None, None, None).url == "http://127.0.0.1:8080"


def test_a_key_goes_to_its_own_server_only():
    first = Target("http://here:1", "chat", "k")
    assert other_of("http://here:1/v1", "old", None, first) == Target("http://here:1/v1", "old", "k")
    assert other_of("http://other:1", None, None, first).key is None
    assert other_of("http://other:1", None, "o", first).key == "o"
    assert other_of("chat@1", None, None, first) == Target(None, "chat@1")
    assert "'k'" not in repr(first)


def test_a_key_of_the_environment_does_not_go_where_a_set_says():
    named = parse_set({"judge": {"url": "https://evil.example", "model": "j"}, "cases": JUDGED})
    assert judge_for(named, None, None, "k", hold_back=True) == Target("https://evil.example", "j", None)
    assert judge_for(named, None, None, "k", hold_back=False).key == "k"
    assert judge_for(named, "http://mine", None, "k", hold_back=True) == Target("http://mine", "j", "k")


def test_a_judge_is_wanted_only_where_there_is_something_to_judge():
    assert judge_for(parse_set([{"prompt": "a"}]), "http://mine", None, None, hold_back=False) is None
    with pytest.raises(ConfigError, match="--judge-url"):
        judge_for(parse_set(JUDGED), None, None, None, hold_back=False)


def test_a_file_may_be_called_smoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_set("smoke", frozenset()).cases) == 24
    assert len(read_set("smoke", frozenset({"json"})).cases) == 2
    (tmp_path / "smoke").write_text("cases: [{prompt: a}]")
    assert len(read_set("smoke", frozenset()).cases) == 1
    with pytest.raises(BadSet, match="its tags: none"):
        read_set("smoke", frozenset({"json"}))


def test_files_are_looked_at_before_anybody_is_asked(tmp_path):
    check_outputs(None, tmp_path / "new.xml")
    for path in (tmp_path, tmp_path / "none" / "x.xml"):
        with pytest.raises(OperatorError, match="cannot be written"):
            check_outputs(path)


def on_terminal(report, thresholds, against=None):
    console = Console(width=120, record=True, force_terminal=True)
    with console.capture() as captured:
        for part in shown(report, judge_report(report, thresholds, against), against):
            console.print(part, soft_wrap=True)
    return captured.get()


def result(name, passed, text, **reply):
    failures = () if passed else (reply.get("error") or "wrong",)
    return CaseResult(name, ("facts",), passed, failures, Reply(text, 4, 0.25, 1.0, **reply))


def test_what_is_shown():
    before = Report("set", "chat@1", (result("a", True, "Rome"), result("b", False, "no")))
    after = Report("set", "chat@2", (result("a", False, "Milan"), result("b", True, "yes")))
    text = on_terminal(after, Thresholds(pass_rate=0.9, pass_rate_drop=0.1), before)
    for words in ("chat@1", "chat@2", "50 %  1/2", "at least 90 %", "worse", "better", "before: «Rome»", "0.25 s"):
        assert words in text
    assert "pass rate 50 %, at least 90 % wanted" in text
    assert "pass rate lost" in text


def test_an_answer_does_not_command_the_terminal():
    hostile = "\x1b[2J\x07\u202eevil\nnext [red]line"
    text = on_terminal(Report("set", "m", (result("a", False, hostile),)), Thresholds())
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "evil next [red]line" in text
    assert plain("a\tb\x00") == "a b\ufffd"


def test_thousands_of_failed_cases_are_counted():
    text = on_terminal(Report("set", "m", tuple(result(str(n), False, "x") for n in range(1000))), Thresholds())
    assert "and 950 more" in text
    assert len(text.splitlines()) < 80
