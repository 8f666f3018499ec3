"""What results add up to, verdicts, documents and JUnit."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.evaluation.asking import Reply
from stoker.evaluation.junit import junit_xml
from stoker.evaluation.report import CaseResult, Report, differences, document, percentile
from stoker.evaluation.sets import Thresholds
from stoker.evaluation.verdict import judge_report


def result(name, passed=True, text="yes", tags=(), failures=(), **reply):
    said = {"tokens": 10, "first_token_s": 0.1, "total_s": 1.0, "finish_reason": "stop"} | reply
    failures = failures or (() if passed else (said.get("error") or "wrong",))
    return CaseResult(name, tags, passed, failures, Reply(text, **said))


def report(*results, model="m"):
    return Report("set", model, results, 2.0)


def of(passed, cases, **reply):
    return report(*(result(str(n), n < passed, **reply) for n in range(cases)))


FLOATS = st.floats(0, 1e6)


@given(st.lists(FLOATS, min_size=1), st.floats(0, 1))
def test_a_percentile_lies_between_its_neighbours(values, share):
    found = percentile(values, share)
    assert found is not None
    ordered = sorted(values)
    rank = share * (len(values) - 1)
    tolerance = 1e-6 * max(ordered)
    assert ordered[int(rank)] - tolerance <= found <= ordered[min(int(rank) + 1, len(values) - 1)] + tolerance


@given(st.lists(FLOATS, min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_percentiles_grow_with_the_share(values, one, other):
    low, high = sorted((one, other))
    assert percentile(values, low) <= percentile(values, high) + 1e-6 * max(values)


def test_percentiles_by_hand():
    assert percentile([], 0.5) is None
    assert percentile([3], 0.95) == 3
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([0, 10], 0.95) == 9.5
    assert (percentile([1, 2], 0), percentile([1, 2], 1)) == (1, 2)


def test_what_results_add_up_to():
    made = report(
        result("a", tags=("x", "y"), first_token_s=0.1, total_s=1.0),
        result("b", passed=False, tags=("x",), first_token_s=0.3, total_s=2.0),
        result("c", passed=False, error="HTTP 500", first_token_s=9.0, total_s=9.0),
        CaseResult("d", (), False, ("no judge",), Reply("x", None, None, 0.5), judge_error="no judge"),
    )
    assert made.pass_rate == 0.25
    assert {tag: tally.rate for tag, tally in made.by_tag.items()} == {"x": 0.5, "y": 1.0}
    assert made.errors == 2
    assert made.ttft_p95 == pytest.approx(0.29)  # a failed request's time is no answer's
    assert made.tokens_per_s == pytest.approx(7.5)
    assert [r.outcome for r in made.results] == ["passed", "failed", "error", "error"]


def test_nothing_measured():
    made = report(result("a", passed=False, error="dead", first_token_s=None))
    assert (made.ttft_p95, made.tokens_per_s) == (None, None)
    verdict = judge_report(made, Thresholds(errors=1, ttft_p95=9.0, tokens_per_s=1.0, pass_rate=0.0))
    assert [check.name for check in verdict.checks if not check.passed] == ["ttft_p95", "tokens_per_s"]
    assert "not measured" in verdict.reason


@pytest.mark.parametrize(
    ("thresholds", "passed", "failing"),
    [
        ({"pass_rate": 0.8}, 8, None),
        ({"pass_rate": 0.9}, 8, "pass_rate"),
        ({}, 10, None),
        ({}, 9, "pass_rate"),  # asking nothing of the rate asks for all
        ({"pass_rate": 0.0}, 0, None),
        ({"ttft_p95": 0.1, "pass_rate": 0}, 8, None),
        ({"ttft_p95": 0.09, "pass_rate": 0}, 8, "ttft_p95"),
        ({"tokens_per_s": 10.0, "pass_rate": 0}, 8, None),
        ({"tokens_per_s": 11.0, "pass_rate": 0}, 8, "tokens_per_s"),
        ({"pass_rate_drop": 0.1}, 8, None),  # 0.9 before
        ({"pass_rate_drop": 0.1}, 7, "pass_rate_drop"),
        ({"pass_rate_drop": 0.0}, 10, None),
        ({"ttft_p95_ratio": 1.0, "pass_rate": 0}, 9, None),
        ({"ttft_p95_ratio": 0.9, "pass_rate": 0}, 9, "ttft_p95_ratio"),
        ({"tokens_per_s_ratio": 1.0, "pass_rate": 0}, 9, None),
        ({"tokens_per_s_ratio": 1.1, "pass_rate": 0}, 9, "tokens_per_s_ratio"),
    ],
)
def test_each_threshold(thresholds, passed, failing):
    verdict = judge_report(of(passed, 10), Thresholds(**thresholds), of(9, 10))
    assert verdict.passed == (failing is None)
    assert [check.name for check in verdict.checks if not check.passed] == ([failing] if failing else [])
    assert bool(verdict.reason) == (failing is not None)


def test_tags_have_rates_of_their_own():
    made = report(result("a", tags=("x",)), result("b", passed=False, tags=("y",)))
    verdict = judge_report(made, Thresholds(tags={"x": 1.0, "y": 0.5}))
    assert {check.name: check.passed for check in verdict.checks} == {"errors": True, "tag:x": True, "tag:y": False}
    assert verdict.reason == "pass rate of y 0 %, at least 50 % wanted"


def test_errors_are_counted_apart():
    made = report(result("a"), result("b", passed=False, error="HTTP 503"))
    assert not judge_report(made, Thresholds(pass_rate=0.5)).passed
    assert judge_report(made, Thresholds(pass_rate=0.5, errors=1)).passed


def test_relative_thresholds_need_another_version():
    wanted = Thresholds(pass_rate_drop=0.0, ttft_p95_ratio=0.1, tokens_per_s_ratio=99.0)
    assert judge_report(of(1, 10), wanted).passed
    silent = of(10, 10, tokens=None, first_token_s=None)
    assert {check.name for check in judge_report(of(10, 10), wanted, silent).checks} == {"errors", "pass_rate_drop"}
    measured = judge_report(silent, wanted, of(10, 10)).checks
    assert {check.name for check in measured if check.value is None} == {"ttft_p95_ratio", "tokens_per_s_ratio"}


@given(st.integers(1, 400), st.data())
def test_a_drop_of_exactly_the_limit_passes(cases, data):
    before = data.draw(st.integers(0, cases))
    after = data.draw(st.integers(0, before))
    wanted = Thresholds(pass_rate_drop=(before - after) / cases)
    assert judge_report(of(after, cases), wanted, of(before, cases)).passed
    if after:
        assert not judge_report(of(after - 1, cases), wanted, of(before, cases)).passed


def test_differences_case_by_case():
    before = report(result("a"), result("b", passed=False), result("c"), result("gone"))
    after = report(result("new"), result("c", passed=False), result("b"), result("a"))
    found = differences(after, before)
    assert [(d.case, d.better, d.before.passed, d.after.passed) for d in found] == [
        ("c", False, True, False),
        ("b", True, False, True),
    ]


def test_a_document_is_bounded_and_tells_failures_first():
    long = "x" * 10_000
    made = report(*(result(str(n), n % 2 == 0, text=long, failures=(long,) * (n % 2)) for n in range(1000)))
    verdict = judge_report(made, Thresholds(pass_rate=0.5))
    told = document(made, verdict)
    assert len(json.dumps(told)) < 250_000
    assert len(told["results"]) == 100
    assert told["omitted"] == 900
    assert all(row["outcome"] == "failed" and len(row["answer"]) == 500 for row in told["results"])
    assert [row["id"] for row in told["results"]] == [str(n) for n in range(1, 200, 2)]
    assert len(document(made, verdict, listed=None)["results"]) == 1000


def test_a_document_has_both_versions():
    made, other = report(result("a", passed=False), model="chat@2"), report(result("a"), model="chat@1")
    told = document(made, judge_report(made, Thresholds(), other), other)
    assert json.loads(json.dumps(told)) == told
    assert (told["model"], told["against"]["model"]) == ("chat@2", "chat@1")
    assert told["verdict"]["reason"] == "pass rate 0 %, at least 100 % wanted"
    assert told["differences"] == [
        {
            "case": "a",
            "before": {"outcome": "passed", "answer": "yes"},
            "after": {"outcome": "failed", "answer": "yes"},
        }
    ]


def test_junit_counts_and_words():
    made = report(result("a"), result("b", passed=False), result("c", passed=False, error="HTTP 500"))
    suite = ET.fromstring(junit_xml(made, judge_report(made, Thresholds())))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "3", "1")
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases == {
        "a": ["system-out"],
        "b": ["failure", "system-out"],
        "c": ["error", "system-out"],
        "errors": ["failure"],
        "pass_rate": ["failure"],
    }


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_junit_is_xml_whatever_is_answered(answer, failure):
    made = report(result(f"a{answer[:5]}", passed=False, text=f"{answer}\x00\x1b[2J\ud800]]>", failures=(failure,)))
    suite = ET.fromstring(junit_xml(made, judge_report(made, Thresholds())))[0]
    assert "[2J" in suite[0].find("system-out").text
