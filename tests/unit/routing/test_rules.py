"""Headers and keywords."""

import pytest

from stoker.config import ExpertConfig
from stoker.routing.rules import Rules

EXPERTS = (
    ExpertConfig(name="finance", model="m", keywords=("invoice", "credit card", "счёт", "C++"), header="x-team: money"),
    ExpertConfig(name="travel", model="m", keywords=("credit card abroad", "flight"), header="x-expert:travel"),
)
RULES = Rules(EXPERTS)


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("the INVOICE, please", "invoice"),
        ("my credit\n  card", "credit card"),
        ("Выставьте СЧЁТ!", "счёт"),
        ("is C++ hard?", "C++"),
        ("\uff49nvoice", "invoice"),
    ],
)
def test_keywords_are_found_whatever_their_case_width_and_space(text, keyword):
    hit = RULES.by_keyword(text)
    assert hit is not None
    assert (hit[0].name, hit[1]) == ("finance", keyword)


@pytest.mark.parametrize("text", ["invoices", "счёты", "reinvoice", "credit cards", "my_invoice", ""])
def test_parts_of_words_are_no_keywords(text):
    assert RULES.by_keyword(text) is None


def test_the_first_configured_expert_wins():
    assert RULES.by_keyword("flight and invoice")[0].name == "finance"
    assert RULES.by_keyword("a credit card abroad")[0].name == "finance"
    assert Rules(EXPERTS[::-1]).by_keyword("a credit card abroad")[0].name == "travel"


def test_headers_compare_names_without_case_and_values_exactly():
    assert RULES.by_header({"X-Team": " money "}).name == "finance"
    assert RULES.by_header({"x-expert": "travel"}).name == "travel"
    assert RULES.by_header({"x-team": "Money"}) is None
    assert RULES.by_header({}) is None


def test_no_rules_match_nothing():
    rules = Rules((ExpertConfig(name="a", model="m", keywords=(" ",)),))
    assert rules.by_keyword("anything") is None
    assert rules.by_header({"x": "y"}) is None
