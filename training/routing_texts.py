"""The texts that the routing network learns from: sentences, parallel requests from patterns, words, and mixtures.

None of them is shipped; they only show the teacher model's vectors. Texts are lower case, as callers write.
"""

# ruff: noqa: ANN001, ANN201, ANN202, INP001, PLR2004, RUF001, S311

from __future__ import annotations

import gettext
import itertools
import json
import random
import re
from importlib.util import find_spec
from pathlib import Path

import wordfreq
import yaml

PHRASES = Path(__file__).with_name("routing_phrases.txt")
OPENINGS = {
    "en": ("please", "can you", "could you", "i need to", "i want to", "tell me", "do you know", "help me", "also"),
    "ru": ("пожалуйста", "можешь", "мне нужно", "я хочу", "скажи", "ты знаешь", "помоги", "сколько", "как", "где"),
}
SLOT = re.compile(r"\{([^}]*)\}")


def patterns():
    """Each line of the phrases: English, Russian, both with slots."""
    lines = PHRASES.read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" | ")) for line in lines if line and not line.startswith("#")]


def filled(pattern, choice):
    """A pattern with the chosen alternative in each slot."""
    places = iter(choice)
    return " ".join(SLOT.sub(lambda slot: _pick(slot[1].split("/"), next(places)), pattern).split())


def _pick(alternatives, place):
    return alternatives[place % len(alternatives)]


def parallel(limit=400):
    """(English, Russian) requests, at most `limit` of each pattern."""
    source = random.Random(5)
    pairs = []
    for english, russian in patterns():
        sizes = [len(slot.split("/")) for slot in SLOT.findall(english)]
        choices = list(itertools.product(*map(range, sizes)))
        source.shuffle(choices)
        pairs += [(filled(english, choice), filled(russian, choice)) for choice in choices[:limit]]
    return pairs


def cleaned(text):
    """One line of plain lower-case text, without markup and placeholders."""
    text = re.sub(r"<[^>]+>", " ", text)
    text = re.sub(r"[_&](?=\w)", "", text)
    text = re.sub(r"%\S+|\$\{?\w+\}?|\\n", " ", text)
    return re.sub(r"\s+", " ", text).strip().strip('"').lower()


def usable(text, fewest=2, most=30):
    """Whether a text is a phrase of a sensible length."""
    return fewest <= len(text.split()) <= most and len(text) < 220 and re.search(r"[a-zа-я]{3}", text) is not None


def sentences(debian):
    """English and Russian sentences of two Python packages and of unpacked Debian packages."""
    found = [*_chats(), *_dialogues()]
    for file in debian.glob("**/wordnet/data.*"):
        for gloss in re.findall(r"\| (.*)", file.read_text(errors="ignore")):
            found += [cleaned(part) for part in re.split(r'[";]', gloss)]
    for file in debian.glob("**/games/fortunes/ru/*.u8"):
        found += [cleaned(part).strip("- ") for part in re.split(r"\n|(?<=[.!?])\s+", file.read_text(errors="ignore"))]
    for file in {*debian.glob("**/ru/**/*.mo"), *debian.glob("**/ru*.mo")}:
        found += _translations(file)
    for file in debian.glob("**/help/ru/**/*.page"):
        found += [cleaned(part) for part in re.split(r"(?<=[.!?])\s+|\n\n", re.sub(r"<[^>]+>", "", file.read_text()))]
    return list(dict.fromkeys(text for text in found if usable(text)))


def _chats():
    conversations = json.loads((_package("chitchat_dataset") / "dataset.json").read_text())
    for conversation in conversations.values():
        for turn in conversation["messages"]:
            yield from (cleaned(message.get("text", "")) for message in turn)


def _dialogues():
    for language in ("english", "russian"):
        for file in (_package("chatterbot_corpus") / "data" / language).glob("*.yml"):
            for turns in yaml.safe_load(file.read_text())["conversations"]:
                yield from (cleaned(str(turn)) for turn in turns)


def _translations(file):
    try:
        with file.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog  # noqa: SLF001 - it has no other way to list them
    except (OSError, UnicodeDecodeError):
        return
    for source, translated in catalogue.items():
        original = (source[0] if isinstance(source, tuple) else source).split("\x04")[-1]
        for text in (original, translated):
            yield from (cleaned(part) for part in re.split(r"(?<=[.!?…])\s+|\n", text))


def _package(name):
    return Path(find_spec(name).origin).parent


def words():
    """Frequent English words, and frequent Russian word forms."""
    english = [word for word in wordfreq.top_n_list("en", 22000) if re.fullmatch(r"[a-z][a-z']+", word)]
    russian = [word for word in wordfreq.top_n_list("ru", 40000) if re.fullmatch(r"[а-яё]{2,}", word)]
    return english[:18000], russian[:34000]


def mixtures(count=60000):
    """Two to four random words, so that a word's meaning is learned beside others."""
    source = random.Random(9)
    lists = words()
    return [
        " ".join(_frequent(source, lists[number % 4 > 0]) for _ in range(source.choice((2, 3, 4))))
        for number in range(count)
    ]


def variations(pairs, count=265000):
    """Requests with words dropped, replaced or added: the teacher says what they mean then."""
    source = random.Random(11)
    lists = words()
    made = []
    for number in range(count):
        language = ("en", "ru")[number % 3 > 0]
        place = ("en", "ru").index(language)
        text = source.choice(pairs)[place].split()
        for _ in range(source.choice((1, 1, 2, 3))):
            text = _varied(source, text, lists[place], OPENINGS[language])
        made.append(" ".join(text))
    return list(dict.fromkeys(made))


def _varied(source, text, vocabulary, openings):
    kind = source.random()
    place = source.randrange(len(text))
    if kind < 0.25 and len(text) > 2:
        return text[:place] + text[place + 1 :]
    if kind < 0.6:
        return [*text[:place], _frequent(source, vocabulary), *text[place + 1 :]]
    if kind < 0.8:
        return [*text[:place], _frequent(source, vocabulary), *text[place:]]
    return [*source.choice(openings).split(), *text]


def _frequent(source, vocabulary):
    return vocabulary[int(len(vocabulary) * source.random() ** 2)]
