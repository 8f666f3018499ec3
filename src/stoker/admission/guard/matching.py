"""Automata that follow a text letter by letter and know at each letter how much of something it ends with.

`Phrase` knows one secret: the automaton of Knuth, Morris and Pratt ("Fast pattern matching in strings", 1977). `Runs`
knows every stretch of a system prompt: its suffix automaton (Blumer et al., "The smallest automaton recognizing the
subwords of a text", 1985). Both take constant time a letter on average, whatever the text.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import Final

RUN: Final = 12
"""Consecutive words of the system prompt that make a leak."""
SHORTEST: Final = 5
"""Words of the shortest system prompt that is protected; below `RUN` all its words together make the leak."""
LONGEST: Final = 50_000
"""Letters of a system prompt that are protected, from its beginning."""
PROMPTS: Final = 16
"""System prompts whose automata are kept for the next answer."""


class Phrase:
    """Follows one phrase. `matched` letters of its beginning are what the text ends with."""

    def __init__(self, phrase: str) -> None:
        self.matched = 0
        self._phrase = phrase
        self._borders = [0]
        border = 0
        for letter in phrase[1:]:
            while border and letter != phrase[border]:
                border = self._borders[border - 1]
            border += letter == phrase[border]
            self._borders.append(border)

    def step(self, letter: str) -> bool:
        """Takes the next letter; whether the whole phrase has now come. It must not be asked on after that."""
        matched = self.matched
        while matched and letter != self._phrase[matched]:
            matched = self._borders[matched - 1]
        self.matched = matched + (letter == self._phrase[matched])
        return self.matched == len(self._phrase)


class Prompt:
    """The suffix automaton of a system prompt, which never changes; many `Runs` may share it."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.need = min(RUN, len(words))
        self.starts: list[int] = []
        self.ends: list[int] = []
        text = "".join(words)[:LONGEST]
        place = 0
        for word in words:
            self.starts.append(place)
            place += len(word)
            self.ends.append(place)
        self.edges: list[dict[str, int]] = [{}]
        self.lengths = [0]
        self.links = [-1]
        self.last_places = [0]
        last = 0
        for end, letter in enumerate(text, 1):
            last = self._extend(last, letter, end)

    def covered(self, start: int, end: int) -> int:
        """How many whole words lie between two places of the prompt's letters."""
        return max(bisect_right(self.ends, end) - bisect_left(self.starts, start), 0)

    def _extend(self, last: int, letter: str, end: int) -> int:
        new = self._state({}, self.lengths[last] + 1, 0, end)
        state = last
        while state != -1 and letter not in self.edges[state]:
            self.edges[state][letter] = new
            state = self.links[state]
        if state == -1:
            return new
        target = self.edges[state][letter]
        if self.lengths[target] == self.lengths[state] + 1:
            self.links[new] = target
            return new
        copy = self._state(
            dict(self.edges[target]), self.lengths[state] + 1, self.links[target], self.last_places[target]
        )
        while state != -1 and self.edges[state].get(letter) == target:
            self.edges[state][letter] = copy
            state = self.links[state]
        self.links[target] = self.links[new] = copy
        return new

    def _state(self, edges: dict[str, int], length: int, link: int, place: int) -> int:
        self.edges.append(edges)
        self.lengths.append(length)
        self.links.append(link)
        self.last_places.append(place)
        return len(self.edges) - 1


class Runs:
    """Follows the longest stretch of a prompt that the text ends with: `matched` letters, `words` whole words."""

    def __init__(self, prompt: Prompt) -> None:
        self.matched = 0
        self.words = 0
        self._prompt = prompt
        self._state = 0

    def step(self, letter: str) -> bool:
        """Takes the next letter; whether a run has come that is long enough for a leak."""
        prompt = self._prompt
        state = self._state
        while state and letter not in prompt.edges[state]:
            state = prompt.links[state]
            self.matched = prompt.lengths[state]
        following = prompt.edges[state].get(letter)
        self._state = 0 if following is None else following
        self.matched = 0 if following is None else self.matched + 1
        end = prompt.last_places[self._state]
        self.words = prompt.covered(end - self.matched, end) if self.matched else 0
        return self.words >= prompt.need


def runs_of(words: tuple[str, ...]) -> Runs | None:
    """A follower of a prompt with these words, or None when it is too short to protect."""
    return Runs(_prompt(words)) if len(words) >= SHORTEST else None


@lru_cache(maxsize=PROMPTS)
def _prompt(words: tuple[str, ...]) -> Prompt:
    return Prompt(words)
