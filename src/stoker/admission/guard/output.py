"""Keeps secrets, canaries and the system prompt from leaving in an answer, also while it streams.

Texts are compared letter by letter: case, accents, spaces, punctuation and invisible characters do not count, so a
model that spells a secret with dashes does not get it out. What an answer might still become is followed by the
automata of `matching`; what looks like the beginning of a secret is held back until it turned out to be none.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

from stoker.admission.guard.matching import Phrase, Runs, runs_of

Leak = Literal["secret", "canary", "system prompt"]

HOLD: Final = 256
"""Characters that are held back at most."""
SECRET_LETTERS: Final = 128
"""Letters of a longer secret that are looked for: its beginning, so that all of it can be held back."""
HELD_WORDS: Final = 3
"""From so many words of the system prompt in a row on they are held back; fewer come in any answer."""

_ASCII: Final = {chr(code): chr(code).lower() if chr(code).isalnum() else "" for code in range(128)}


class OutputFilter:
    """Follows one answer. `feed` and `finish` give what may go out; `tripped` names what would have leaked.

    What is let through comes out unchanged and in order. Held back is what could be the beginning of a secret: at most
    one character less than the longest secret, or as many more as stood between its letters, never more than `HOLD`.
    A leak of the system prompt is `matching.RUN` of its words in a row, or all of a prompt of `matching.SHORTEST` words
    or more; at most the first `HELD_WORDS` of such a run are out before it is known, and what comes after never is.
    Where more than `HOLD` characters stand between the first and the last letter of a secret, its beginning gets out.

    Args:
        secrets: texts that must not leave. What has neither letters nor digits is ignored.
        system_prompt: the prompt of which no long piece may leave; None protects none.
        canary: a marker in system prompts; a secret by another name.
    """

    def __init__(self, secrets: Sequence[str], system_prompt: str | None, *, canary: str | None = None) -> None:
        self.tripped: Leak | None = None
        kinds: list[tuple[Leak, str]] = [("secret", secret) for secret in secrets]
        if canary is not None:
            kinds.append(("canary", canary))
        cores = [(kind, letters(secret)[:SECRET_LETTERS]) for kind, secret in kinds]
        self._phrases = [(kind, Phrase(core)) for kind, core in cores if core]
        self._runs: Runs | None = None if system_prompt is None else runs_of(words(system_prompt))
        self._held = ""
        self._seen = 0
        self._places: deque[int] = deque(maxlen=2 * HOLD)

    def feed(self, text: str) -> str:
        """Takes the next piece of the answer, gives what may go out now; nothing once it tripped."""
        if self.tripped is not None:
            return ""
        self._held += text
        for place, character in enumerate(text, self._seen):
            plain = _ASCII.get(character)
            for letter in letters(character) if plain is None else plain:
                self._places.append(place)
                self._step(letter)
                if self.tripped is not None:
                    self._seen += len(text)
                    return self._release(self._start())
        self._seen += len(text)
        return self._release(max(self._start(), self._seen - HOLD))

    def finish(self) -> str:
        """The answer is over: gives what was held back, for it turned out to be no leak; nothing once it tripped."""
        rest, self._held = ("" if self.tripped is not None else self._held), ""
        return rest

    def _step(self, letter: str) -> None:
        for kind, phrase in self._phrases:
            if phrase.step(letter):
                self.tripped = kind
        if self._runs is not None and self._runs.step(letter):
            self.tripped = self.tripped or "system prompt"

    def _start(self) -> int:
        """The place of the first character that must not go out yet."""
        matched = max((phrase.matched for _, phrase in self._phrases), default=0)
        if self._runs is not None and self._runs.words >= HELD_WORDS:
            matched = max(matched, self._runs.matched)
        return self._places[-min(matched, len(self._places))] if matched else self._seen

    def _release(self, place: int) -> str:
        """Gives what is held before that place; drops the rest where the filter tripped."""
        count = max(place - (self._seen - len(self._held)), 0)
        out, self._held = self._held[:count], self._held[count:]
        if self.tripped is not None:
            self._held = ""
        return out


def letters(text: str) -> str:
    """The letters and digits of a text in one form: no case, no accents, no compatibility variants."""
    if text.isascii():
        return "".join(map(_ASCII.__getitem__, text))
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def words(text: str) -> tuple[str, ...]:
    """The words of a text in that form."""
    return tuple(word for word in map(letters, text.split()) if word)
