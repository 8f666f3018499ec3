"""What a request must pass before it may cost anything: limits of one request, the guard, and the caller's share."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from hashlib import blake2b

from stoker.admission.auth import Caller
from stoker.admission.guard.inspect import Guard, Verdict
from stoker.admission.guard.output import OutputFilter
from stoker.admission.guard.policy import Decision, judge, resolve, scanned
from stoker.admission.leaks import filtered
from stoker.admission.limits import Limiter, Permit, RateLimited
from stoker.admission.validation import check_embedding, check_generation
from stoker.config import GuardPolicy, Settings
from stoker.errors import RequestError
from stoker.observability.metrics import Metrics
from stoker.observability.record import Record
from stoker.types import Chunk, EmbeddingRequest, GenerationRequest, Message

REMEMBERED_VERDICTS = 4096
SHORT_TEXT = 2000
"""Characters up to which a text is looked at on the event loop: about a millisecond. Longer ones go to a thread."""


class AttackBlocked(RequestError):
    """The guard took the request for an attack."""

    code = "prompt_injection"


class Gate:
    """Lets requests in, or not.

    Args:
        settings: limits of one request, and the guard's policy.
        limiter: counts what callers take.
        guard: looks at texts; None to have it loaded when a key or a model first asks for it.
        metrics: told of decisions.
    """

    def __init__(self, settings: Settings, limiter: Limiter, guard: Guard | None, metrics: Metrics) -> None:
        self._settings = settings
        self._limiter = limiter
        self._guard = guard
        self._metrics = metrics
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        config = settings.guard
        self._secrets = [secret.get_secret_value() for secret in config.secrets]
        self._canary = config.canary.get_secret_value() if config.canary else None

    async def check(self, request: GenerationRequest, model: GuardPolicy, caller: Caller, record: Record) -> None:
        """Is it affordable, and is it no attack? Raises RequestError, AttackBlocked among them."""
        check_generation(request, self._settings.limits)
        policy = resolve(self._settings.guard, model, caller.guard)
        if policy.mode == "off":
            return
        texts = scanned(_as_messages(request), policy, trusted=caller.trusted)
        decision = judge([await self._verdict(text) for text in texts], policy)
        record.guard_score, record.guard_rules = decision.score, decision.rules
        if decision.action != "allow":
            self._act_on(decision, record)

    def check_embedding(self, request: EmbeddingRequest) -> None:
        """Is it affordable? Raises RequestError."""
        check_embedding(request, self._settings.limits)

    async def permit(self, caller: Caller, record: Record, tokens: int) -> Permit:
        """The caller's share of a call that may use so many tokens; RateLimited when it has had it."""
        try:
            permit = await self._limiter.admit(caller, record.id, tokens)
        except RateLimited as error:
            self._metrics.limited.labels("key" if caller.key_name else "address").inc()
            record.headers += error.headers
            raise
        record.headers += permit.headers
        return permit

    def guarded(self, request: GenerationRequest, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
        """An answer without what must not leave in it; its chunks themselves where nothing is to be protected."""
        system = self._protected(request)
        if not (self._secrets or self._canary or system):
            return chunks
        make = partial(OutputFilter, self._secrets, system, canary=self._canary)
        return filtered(chunks, make, lambda what: self._metrics.leaks.labels(what).inc())

    def _protected(self, request: GenerationRequest) -> str | None:
        """The system prompt that must not be told; None where it may be."""
        if not self._settings.guard.protect_system_prompt:
            return None
        return "\n".join(m.get("content") or "" for m in request.messages if m["role"] == "system") or None

    def _act_on(self, decision: Decision, record: Record) -> None:
        self._metrics.guarded.labels(decision.action, decision.category).inc()
        record.guard_action = decision.action
        if decision.action == "block":
            raise AttackBlocked(
                f"the request looks like an attack ({decision.category}) and is not served; rephrase it, or ask the "
                "operator if it is none"
            )
        if decision.action == "flag":
            record.headers.append((b"x-guard", f'flagged; class="{decision.category}"'.encode()))

    async def _verdict(self, text: str) -> Verdict:
        """What the guard says of a text; the same text is not looked at twice in a row."""
        if self._guard is None:
            self._guard = await asyncio.to_thread(Guard.load)
        key = blake2b(text.encode(), digest_size=16).digest()
        known = self._verdicts.get(key)
        if known is not None:
            self._verdicts.move_to_end(key)
            return known
        look = self._guard.inspect
        verdict = look(text) if len(text) <= SHORT_TEXT else await asyncio.to_thread(look, text)
        self._verdicts[key] = verdict
        if len(self._verdicts) > REMEMBERED_VERDICTS:
            self._verdicts.popitem(last=False)
        return verdict


def _as_messages(request: GenerationRequest) -> Sequence[Message]:
    if request.kind == "chat":
        return request.messages
    return ({"role": "user", "content": request.prompt if isinstance(request.prompt, str) else ""},)
