"""Which expert a conversation has: a bounded memory with a time limit. The only thing in routing that changes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from stoker.types import Message

MOST_CONVERSATIONS = 10_000


class Conversations:
    """Remembers an expert's name for a conversation's key.

    Args:
        seconds: how long after its last request a conversation is remembered; 0 remembers nothing.
        limit: conversations remembered at once; the longest unused is forgotten first.
        clock: monotonic seconds.
    """

    def __init__(
        self, seconds: float, limit: int = MOST_CONVERSATIONS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._limit = limit
        self._clock = clock
        self._kept: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Conversations that are remembered, expired ones included."""
        return len(self._kept)

    def recall(self, conversation: str) -> str | None:
        """The expert of a conversation, if it has one that has not expired."""
        with self._lock:
            expert, until = self._kept.get(conversation, ("", 0.0))
            if not expert:
                return None
            if until <= self._clock():
                del self._kept[conversation]
                return None
            return expert

    def remember(self, conversation: str, expert: str) -> None:
        """Note a conversation's expert, and that it was just used."""
        if self._seconds <= 0:
            return
        with self._lock:
            self._kept[conversation] = (expert, self._clock() + self._seconds)
            self._kept.move_to_end(conversation)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)


def conversation_key(messages: Sequence[Message], principal_tenant: str) -> str:
    """A key that all turns of a conversation share: of its tenant, its system prompt and its first user message."""
    system = next((message.get("content") or "" for message in messages if message.get("role") == "system"), "")
    first = next((message.get("content") or "" for message in messages if message.get("role") == "user"), "")
    digest = hashlib.blake2b(digest_size=16)
    for part in (principal_tenant, system, first):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()
