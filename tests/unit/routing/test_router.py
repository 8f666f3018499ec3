"""The order of decisions, fallbacks, stickiness."""

import json

import pytest

from stoker.config import ExpertConfig, RoutingConfig
from stoker.errors import ConfigError
from stoker.routing.classifier import Ranking
from stoker.routing.router import Router, conversation_key
from stoker.routing.sticky import Conversations

EXPERTS = (
    ExpertConfig(name="finance", model="fin", keywords=("invoice",), header="x-expert: finance", fallback="travel"),
    ExpertConfig(name="travel", model="trip", fallback="spare"),
    ExpertConfig(name="food", model="cook"),
)


class Told:
    """A classifier that says what it is told."""

    def __init__(self, name="food", confidence=0.9):
        self.ranking = Ranking(((name, 0.8), ("travel", 0.2)), confidence)

    def rank(self, _text):
        return self.ranking


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make(told=None, **settings):
    config = RoutingConfig(experts=EXPERTS, **settings)
    clock = Clock()
    return Router(config, "base", told or Told(), Conversations(config.sticky, clock=clock)), clock


def up(*down):
    return lambda model: model not in down


def test_a_header_comes_before_a_keyword():
    router, _ = make()
    choice = router.decide("the invoice", {"X-Expert": "finance"}, None, up())
    assert (choice.model, choice.reason, choice.confidence) == ("fin", "header", None)


def test_a_keyword_comes_before_the_classifier():
    router, _ = make()
    assert router.decide("my invoice", {}, None, up()).reason == "keyword 'invoice'"


def test_the_classifier_says_how_sure_it_is():
    router, _ = make(Told("food", 0.93))
    choice = router.decide("soup", {}, None, up())
    assert (choice.expert.name, choice.model, choice.reason, choice.confidence) == (
        "food",
        "cook",
        "classifier 0.93",
        0.93,
    )


def test_below_the_threshold_the_default_answers():
    router, _ = make(Told("food", 0.31))
    choice = router.decide("soup", {}, None, up())
    assert (choice.expert, choice.model, choice.reason) == (None, "base", "below threshold 0.31 < 0.50")


def test_at_the_threshold_the_expert_answers():
    router, _ = make(Told("food", 0.5))
    assert router.decide("soup", {}, None, up()).model == "cook"


def test_a_conversation_stays_until_its_time_is_over():
    told = Told("food")
    router, clock = make(told, sticky=60)
    router.decide("soup", {}, "talk", up())
    told.ranking = Ranking((("travel", 1.0),), 0.99)
    clock.now += 59
    assert router.decide("a flight", {}, "talk", up()).reason == "sticky"
    clock.now += 59  # the last request renewed it
    assert router.decide("a flight", {}, "talk", up()).model == "cook"
    clock.now += 60
    assert router.decide("a flight", {}, "talk", up()).model == "trip"


def test_a_rule_moves_a_conversation():
    router, _ = make()
    router.decide("soup", {}, "talk", up())
    assert router.decide("my invoice", {}, "talk", up()).model == "fin"
    assert router.decide("and then", {}, "talk", up()).reason == "sticky"


def test_other_conversations_and_single_requests_do_not_stick():
    router, _ = make()
    router.decide("soup", {}, "talk", up())
    assert router.decide("soup", {}, "other", up()).reason.startswith("classifier")
    assert router.decide("soup", {}, None, up()).reason.startswith("classifier")


def test_the_default_does_not_stick():
    told = Told("food", 0.1)
    router, _ = make(told)
    router.decide("hm", {}, "talk", up())
    told.ranking = Ranking((("food", 1.0),), 0.9)
    assert router.decide("soup", {}, "talk", up()).reason == "classifier 0.90"


def test_zero_seconds_route_each_request_anew():
    router, _ = make(sticky=0)
    router.decide("soup", {}, "talk", up())
    assert router.decide("soup", {}, "talk", up()).reason.startswith("classifier")


@pytest.mark.parametrize(
    ("down", "expert", "model"),
    [
        (("fin",), "travel", "trip"),
        (("fin", "trip"), None, "spare"),
        (("fin", "trip", "spare"), None, "base"),
    ],
)
def test_fallbacks_are_followed_to_what_is_up(down, expert, model):
    router, _ = make()
    choice = router.decide("invoice", {}, None, up(*down))
    assert (choice.expert.name if choice.expert else None, choice.model) == (expert, model)
    assert choice.reason == "fallback: finance is down"


def test_without_a_fallback_the_default_answers():
    router, _ = make()
    choice = router.decide("soup", {}, None, up("cook"))
    assert (choice.expert, choice.model, choice.reason) == (None, "base", "fallback: food is down")
    assert choice.confidence == 0.9


def test_a_circle_of_fallbacks_ends():
    experts = (
        ExpertConfig(name="a", model="ma", keywords=("x",), fallback="b"),
        ExpertConfig(name="b", model="mb", fallback="a"),
    )
    router = Router(RoutingConfig(experts=experts), "base", Told())
    assert router.decide("x", {}, None, lambda _: False).model == "base"


def test_a_conversation_returns_to_its_expert_when_that_is_up_again():
    router, _ = make()
    router.decide("soup", {}, "talk", up())
    assert router.decide("more", {}, "talk", up("cook")).model == "base"
    assert router.decide("more", {}, "talk", up()).model == "cook"


def test_two_experts_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="'food'"):
        Router(RoutingConfig(experts=(EXPERTS[2], EXPERTS[2])), "base", Told())


def test_the_memory_of_conversations_is_bounded():
    memory = Conversations(60, limit=3, clock=Clock())
    for number in range(5):
        memory.remember(str(number), "food")
        memory.remember("0", "food")
    assert len(memory) == 3
    assert memory.recall("0") == "food"
    assert memory.recall("1") is None


def test_later_turns_have_the_same_key():
    first = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]
    later = [*first, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "more"}]
    assert conversation_key(first, "t") == conversation_key(later, "t")


def test_tenant_system_prompt_and_first_message_make_the_key():
    user = [{"role": "user", "content": "hi"}]
    keys = {
        conversation_key(user, "t"),
        conversation_key(user, "u"),
        conversation_key([{"role": "user", "content": "ho"}], "t"),
        conversation_key([{"role": "system", "content": "s"}, *user], "t"),
        conversation_key([{"role": "system", "content": "shi"}, {"role": "user", "content": ""}], "t"),
        conversation_key([{"role": "system", "content": "sh"}, {"role": "user", "content": "i"}], "t"),
        conversation_key([], "t"),
        conversation_key([{"role": "user", "content": None}], "t2"),
    }
    assert len(keys) == 8


def test_examples_come_from_the_configuration_and_from_files(tmp_path):
    rows = [{"text": "pay the bill", "domain": "finance"}, {"text": "book a flight", "domain": "travel"}]
    labelled = tmp_path / "rows.jsonl"
    labelled.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    plain = tmp_path / "trips.txt"
    plain.write_text("find a hotel\n\nбилет на поезд\n")  # noqa: RUF001
    config = RoutingConfig(
        experts=(
            ExpertConfig(name="finance", model="fin", examples=("my bank account",), examples_file=labelled),
            ExpertConfig(name="travel", model="trip", examples_file=plain),
        ),
        threshold=0,
    )
    router = Router.from_config(config, "base")
    assert router.decide("hotel in rome", {}, None, up()).model == "trip"
    assert router.decide("деньги на счёте", {}, None, up()).model == "fin"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "domain": "finance"}\n{"text": \n', "line 2: is not JSON"),
        ('\n{"domain": "finance"}\n', "line 2: has no `text`"),
        ('["a"]\n', "line 1: has no `text`"),
        ('{"text": "a", "domain": 3}\n', "line 1: `domain`"),
        ('{"text": "a", "domain": "food"}\n', "no row for 'finance'; its domains are food"),
        ("", "it is empty"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, content, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    config = RoutingConfig(experts=(ExpertConfig(name="finance", model="fin", examples_file=file),))
    with pytest.raises(ConfigError) as caught:
        Router.from_config(config, "base")
    assert message in caught.value.message
    assert str(file) in caught.value.message
    assert "routing.experts[0].examples_file" in caught.value.message


def test_a_missing_file_is_explained(tmp_path):
    config = RoutingConfig(experts=EXPERTS, out_of_scope_file=tmp_path / "none.txt")
    with pytest.raises(ConfigError, match=r"routing\.out_of_scope_file: .*none\.txt cannot be read"):
        Router.from_config(config, "base")
