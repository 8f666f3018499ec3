"""What the classifier learns from a few examples."""

import threading

import numpy as np
import pytest

from stoker.routing.classifier import MOST_EXAMPLES, Classifier
from stoker.routing.vectors import shipped

EXAMPLES = {
    "billing": [
        "I was charged twice for my subscription",
        "send me the invoice for March",
        "how do I get a refund",
        "update my credit card number",
        "why did the price go up",
    ],
    "code": [
        "write a function that reverses a string",
        "fix the bug in this python script",
        "explain this stack trace",
        "how do I parse JSON in Go",
        "refactor this class",
    ],
    "garden": [
        "when should I plant tomatoes",
        "my roses have yellow leaves",
        "how often do I water an orchid",
        "what kills snails on lettuce",
        "prune the apple tree",
    ],
}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.train(EXAMPLES)


def best(classifier: Classifier, text: str) -> str:
    return classifier.rank(text).scores[0][0]


@pytest.mark.parametrize(
    ("text", "expert"),
    [
        ("there is a double payment on my account", "billing"),
        ("the compiler reports a syntax error", "code"),
        ("which flowers grow in the shade", "garden"),
        ("верните мне деньги за подписку", "billing"),
        ("напиши программу для сортировки списка", "code"),
        ("когда сажать огурцы", "garden"),
    ],
)
def test_other_words_and_the_other_language_find_the_expert(classifier, text, expert):
    assert best(classifier, text) == expert


def test_an_example_itself_is_sure(classifier):
    assert classifier.rank(EXAMPLES["garden"][0]).confidence > 0.8


@pytest.mark.parametrize("text", ["who won the football match", "какая столица франции", "qwx zzz vvv", "你好"])
def test_what_is_nobodys_business_is_unsure(classifier, text):
    assert classifier.rank(text).confidence < 0.5


def test_scores_are_probabilities_best_first(classifier):
    scores = [score for _, score in classifier.rank("a question about my bill").scores]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_nothing_said_is_no_confidence(classifier, text):
    ranking = classifier.rank(text)
    assert ranking.confidence == 0
    assert len(ranking.scores) == 3


@pytest.mark.parametrize("text", ["\ud800", "\x00", "🍅" * 50, "a" * 200_000, "я" * 50_000, "? " * 10_000])
def test_strange_texts_have_a_ranking(classifier, text):
    assert 0 <= classifier.rank(text).confidence <= 1


def test_only_the_beginning_counts(classifier):
    start = "how do I get a refund " * 100
    assert classifier.rank(start) == classifier.rank(start + "prune the apple tree " * 5000)


def test_training_is_deterministic(classifier):
    again = Classifier.train(EXAMPLES)
    for text in ("my roses", "the invoice", "сломался скрипт"):
        assert again.rank(text) == classifier.rank(text)


def test_out_of_scope_examples_lower_confidence():
    outside = ["what is the weather", "play some music", "tell me a joke", "set an alarm", "call my sister"]
    asked = "play the next song"
    assert Classifier.train(EXAMPLES, {}, outside).rank(asked).confidence < 0.3


def test_descriptions_alone_are_enough():
    classifier = Classifier.train(
        {}, {"cook": "recipes, cooking and food", "law": "contracts, courts and legal advice"}
    )
    assert best(classifier, "can I sue my landlord") == "law"
    assert best(classifier, "как сварить борщ") == "cook"


def test_one_example_each_is_enough():
    classifier = Classifier.train({"cook": ["how do I bake bread"], "law": ["is this contract valid"]})
    assert best(classifier, "recipe for a cake") == "cook"


def test_a_single_expert_knows_its_own():
    classifier = Classifier.train({"garden": EXAMPLES["garden"]})
    mine, other = classifier.rank("when to water tomatoes"), classifier.rank("who is the president of france")
    assert mine.scores[0] == ("garden", pytest.approx(1))
    assert mine.confidence > 0.5 > other.confidence


def test_without_anything_to_learn_there_is_no_ranking():
    for classifier in (Classifier.train({}), Classifier.train({"a": []}), Classifier.train({"a": []}, {}, ["x y z"])):
        assert classifier.rank("hello").scores == ()
        assert classifier.rank("hello").confidence == 0


def test_an_expert_without_examples_is_not_ranked():
    classifier = Classifier.train({**EXAMPLES, "silent": []})
    assert "silent" not in dict(classifier.rank("hello").scores)


def test_blank_and_repeated_examples_do_no_harm():
    classifier = Classifier.train({"a": ["pay the bill", "pay the bill", " ", ""], "b": ["play a song"] * 5})
    assert best(classifier, "the bill") == "a"


def test_too_many_examples_are_thinned():
    many = {name: [f"{text} {number}" for text in texts for number in range(250)] for name, texts in EXAMPLES.items()}
    classifier = Classifier.train(many)
    assert len(classifier.nearest("tomatoes", 10**6)) <= MOST_EXAMPLES + 300
    assert best(classifier, "plant tomatoes") == "garden"


def test_the_nearest_example_says_why(classifier):
    near = classifier.nearest("when do I plant the tomatoes")[0]
    assert (near.expert, near.text) == ("garden", "when should I plant tomatoes")
    assert 0.5 < near.likeness <= 1.001


def test_threads_do_not_disturb_one_another(classifier):
    texts = ["plant tomatoes", "the invoice", "fix the bug", "верните деньги"] * 20
    alone = [classifier.rank(text) for text in texts]
    found: dict[int, list] = {}

    def work(number: int) -> None:
        found[number] = [classifier.rank(text) for text in texts]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ranked == alone for ranked in found.values())


def test_sentences_that_mean_the_same_are_close_in_both_languages():
    pairs = [("good morning", "доброе утро"), ("block my credit card", "заблокируй мою кредитную карту")]
    encoder = shipped()
    for english, russian in pairs:
        first, second = encoder.encode(english), encoder.encode(russian)
        assert np.linalg.norm(first) == pytest.approx(1, abs=1e-3)
        assert first @ second > 0.6
        assert first @ encoder.encode("the volcano erupted") < 0.4
