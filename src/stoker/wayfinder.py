"""Which model answers a request: the one that it names, the expert that fits it, or the default one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stoker.admission.auth import Caller, Forbidden
from stoker.config import ExpertConfig
from stoker.engine.pool import ModelPool
from stoker.errors import ModelNotFound
from stoker.observability.record import Record
from stoker.routing.router import Router, conversation_key
from stoker.types import EmbeddingRequest, GenerationRequest, Message

DEFAULT_NAMES = frozenset({"", "default"})
CHOOSING_NAMES = frozenset({"", "auto"})


@dataclass(frozen=True, slots=True)
class Way:
    """Where a request goes: a model's pool, by way of an expert or not."""

    pool: ModelPool
    expert: ExpertConfig | None = None

    def prepare(self, request: GenerationRequest) -> GenerationRequest:
        """The request as it goes to the engine, under the expert's system prompt where there is one."""
        if self.expert is None or self.expert.system is None or request.kind != "chat":
            return request
        return replace(request, messages=_under(self.expert.system, request.messages))


@dataclass(frozen=True, slots=True)
class Trial:
    """Engines that a share of a model's callers, 0..1, is sent to: always the same ones, by a hash with `salt`."""

    pool: ModelPool
    share: float
    salt: str

    def takes(self, who: str) -> bool:
        """Whether a caller is among them."""
        drawn = hashlib.sha256(f"{self.salt}:{who}".encode()).digest()
        return int.from_bytes(drawn[:8]) < self.share * 2**64


class Wayfinder:
    """Finds the way of each request.

    Args:
        pools: the models that are served, by name.
        default: the name of the one that answers when nothing else is said.
        experts: by which requests may go to a model.
        router: chooses among them; None where there are none.
    """

    def __init__(
        self, pools: Mapping[str, ModelPool], default: str, experts: Sequence[ExpertConfig], router: Router | None
    ) -> None:
        self.pools = pools
        self.trials: dict[str, Trial] = {}
        self._default = default
        self._router = router
        self.experts = {expert.name: expert for expert in experts}

    def pool(self, name: str) -> ModelPool:
        """The pool of a model by the name in a request; ModelNotFound lists the names that there are."""
        pool = self.pools.get(self._default if name in DEFAULT_NAMES else name)
        if pool is None:
            known = ", ".join([*sorted(self.pools), *sorted(self.experts), *(["auto"] if self.experts else [])])
            raise ModelNotFound(f"model {name[:128]!r} is not served here; there is: {known}", param="model")
        return pool

    def find(
        self, request: GenerationRequest | EmbeddingRequest, caller: Caller, headers: Mapping[str, str], record: Record
    ) -> Way:
        """The way of a request, written into the record.

        Raises:
            ModelNotFound: it names a model that is not served.
            Forbidden: the caller's key may not ask the model.
        """
        way = self._choose(request, headers, record)
        name = way.pool.settings.identity.name
        trial = self.trials.get(name)
        if trial is not None and trial.pool.ready and trial.takes(caller.key_name or caller.address):
            way = Way(trial.pool, way.expert)
        if not caller.may_ask(name) and not (way.expert and caller.may_ask(way.expert.name)):
            raise Forbidden(f"this key may not ask the model {name!r}; it may: {', '.join(caller.models)}")
        record.model = way.pool.settings.identity
        record.expert = way.expert.name if way.expert else None
        return way

    def _choose(self, request: GenerationRequest | EmbeddingRequest, headers: Mapping[str, str], record: Record) -> Way:
        name = request.model
        if name in self.experts:
            return self._to_expert(self.experts[name], record)
        if self._router is None or name not in CHOOSING_NAMES or isinstance(request, EmbeddingRequest):
            record.route_reason = "default" if name in DEFAULT_NAMES else "named"
            return Way(self.pool(name))
        conversation = conversation_key(request.messages, request.principal.tenant) if request.messages else None
        choice = self._router.decide(_question(request), headers, conversation, self._is_up)
        record.route_reason, record.confidence = choice.reason, choice.confidence
        return Way(self.pool(choice.model), choice.expert)

    def _to_expert(self, expert: ExpertConfig, record: Record) -> Way:
        """An expert by its name; where its engine is down, whoever stands in for it."""
        if self._is_up(expert.model) or expert.fallback is None:
            record.route_reason = "named"
            return Way(self.pool(expert.model), expert)
        record.route_reason = f"fallback: {expert.name} is down"
        other = self.experts.get(expert.fallback)
        return Way(self.pool(other.model), other) if other else Way(self.pool(expert.fallback))

    def _is_up(self, model: str) -> bool:
        pool = self.pools.get(model)
        return pool is not None and pool.ready


def _question(request: GenerationRequest) -> str:
    """What is asked: the last thing that the user said."""
    if request.kind == "completion":
        return request.prompt if isinstance(request.prompt, str) else ""
    said = (message.get("content") for message in reversed(request.messages) if message["role"] == "user")
    return next(said, None) or ""


def _under(system: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation under a system prompt; its own one follows in the same message, as templates want."""
    first = messages[0]
    if first["role"] != "system":
        return ({"role": "system", "content": system}, *messages)
    joined: Message = {**first, "content": f"{system}\n\n{first.get('content') or ''}"}
    return (joined, *messages[1:])
