"""What is looked at, and what is done about what was found. Pure: the acts stand in the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stoker.admission.guard.inspect import Verdict
from stoker.config.access import GuardConfig, GuardMode, GuardPolicy, GuardRole
from stoker.types import Message

Action = Literal["allow", "log", "flag", "block"]

_SAME_AS: dict[str, GuardRole] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """The policy of one request.

    Attributes:
        mode: what is done about an attack; `off` looks at nothing.
        threshold: the score, 0..1, from which a text counts as an attack.
        roles: whose messages are looked at.
        characters: how much of one message is looked at.
    """

    mode: GuardMode
    threshold: float
    roles: tuple[GuardRole, ...]
    characters: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a request, and the most suspicious verdict that led to it; an allowed one's score is kept too."""

    action: Action
    score: float
    rules: tuple[str, ...]
    category: str


def resolve(base: GuardConfig, model: GuardPolicy, key: GuardPolicy | None) -> ResolvedPolicy:
    """The policy of a request: each value from its key if set there, else from its model, else from `guard`."""
    layers = [layer for layer in (key, model) if layer is not None]
    mode = next((layer.mode for layer in layers if layer.mode is not None), base.mode)
    threshold = next((layer.threshold for layer in layers if layer.threshold is not None), base.threshold)
    roles = next((layer.roles for layer in layers if layer.roles is not None), base.roles)
    return ResolvedPolicy(mode, threshold, roles, base.characters)


def scanned(messages: Sequence[Message], policy: ResolvedPolicy, *, trusted: bool) -> tuple[str, ...]:
    """The texts to look at, in the order of the messages; of a long one its beginning and its end.

    Roles that are not known count as the user's, so that an invented role hides nothing.

    Args:
        messages: the conversation; a completion's prompt comes as one message of the user.
        policy: whose texts count, and how much of each.
        trusted: whether the key is trusted; its system and developer prompts are then left out.
    """
    if policy.mode == "off":
        return ()
    texts = []
    for message in messages:
        role = _SAME_AS.get(message.get("role", "user"), "user")
        content = message.get("content")
        if content and role in policy.roles and not (trusted and role == "system"):
            texts.append(_ends(content, policy.characters))
    return tuple(texts)


def judge(verdicts: Sequence[Verdict], policy: ResolvedPolicy) -> Decision:
    """The decision about a request whose texts got these verdicts; without any it is allowed."""
    worst = max(verdicts, key=lambda verdict: verdict.score, default=None)
    if policy.mode == "off" or worst is None:
        return Decision("allow", 0.0, (), "")
    action: Action = policy.mode if worst.score >= policy.threshold else "allow"
    return Decision(action, worst.score, worst.rules, worst.category)


def _ends(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    tail = characters // 2
    return f"{text[: characters - tail - 1]}\n{text[len(text) - tail :]}"
