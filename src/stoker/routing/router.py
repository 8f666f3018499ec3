"""Decides which expert, and so which model, gets a request: header, keyword, stickiness, classifier, default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from stoker.config import ExpertConfig, RoutingConfig
from stoker.errors import ConfigError
from stoker.routing.classifier import Classifier
from stoker.routing.examples import expert_examples, out_of_scope_examples
from stoker.routing.rules import Rules
from stoker.routing.sticky import Conversations, conversation_key

__all__ = ["RouteChoice", "Router", "conversation_key"]

IsUp = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """Where a request goes, and why.

    Attributes:
        expert: the expert that answers; None when the default model, or a fallback that is no expert, does.
        model: the served model that answers.
        reason: for people: "header", "keyword 'invoice'", "sticky", "classifier 0.93", "below threshold 0.31 < 0.50",
            "default"; or "fallback: finance is down".
        confidence: the classifier's, 0..1; None where it was not asked.
    """

    expert: ExpertConfig | None
    model: str
    reason: str
    confidence: float | None


class Router:
    """Routes requests that name no model. Thread-safe.

    Args:
        config: experts, threshold, stickiness.
        default: the served model that answers what no expert does.
        classifier: trained on the experts' examples.
        conversations: the memory of stickiness; by default one of `config.sticky` seconds.

    Raises:
        ConfigError: two experts of one name.
    """

    def __init__(
        self,
        config: RoutingConfig,
        default: str,
        classifier: Classifier,
        conversations: Conversations | None = None,
    ) -> None:
        self._experts = {expert.name: expert for expert in config.experts}
        if len(self._experts) < len(config.experts):
            names = [expert.name for expert in config.experts]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"routing.experts: two are called {twice!r}; give each its own name")
        self._default = default
        self._threshold = config.threshold
        self._classifier = classifier
        self._rules = Rules(config.experts)
        self._conversations = Conversations(config.sticky) if conversations is None else conversations

    @classmethod
    def from_config(cls, config: RoutingConfig, default: str) -> Self:
        """Read the examples, train, and make a router; about a second for some five hundred examples.

        Raises:
            ConfigError: an examples file that cannot be read or has nothing for its expert; with file and line.
        """
        descriptions = {expert.name: expert.description for expert in config.experts if expert.description}
        classifier = Classifier.train(expert_examples(config), descriptions, out_of_scope_examples(config))
        return cls(config, default, classifier)

    def decide(self, text: str, headers: Mapping[str, str], conversation: str | None, is_up: IsUp) -> RouteChoice:
        """Choose.

        Args:
            text: what the user asks: the last user message, or the prompt.
            headers: the request's.
            conversation: its `conversation_key`; None routes the request by itself.
            is_up: whether a served model can take requests now.
        """
        wanted = self._by_rule(text, headers) or self._by_memory(conversation) or self._by_text(text)
        if wanted.expert is None:
            return wanted
        if conversation is not None:
            # The expert that was wanted is kept, not its fallback: it gets the conversation back when it is up again.
            self._conversations.remember(conversation, wanted.expert.name)
        return wanted if is_up(wanted.model) else self._fallback(wanted.expert, wanted.confidence, is_up)

    def _by_rule(self, text: str, headers: Mapping[str, str]) -> RouteChoice | None:
        expert = self._rules.by_header(headers)
        if expert is not None:
            return RouteChoice(expert, expert.model, "header", None)
        hit = self._rules.by_keyword(text)
        return None if hit is None else RouteChoice(hit[0], hit[0].model, f"keyword {hit[1]!r}", None)

    def _by_memory(self, conversation: str | None) -> RouteChoice | None:
        name = None if conversation is None else self._conversations.recall(conversation)
        expert = None if name is None else self._experts.get(name)
        return None if expert is None else RouteChoice(expert, expert.model, "sticky", None)

    def _by_text(self, text: str) -> RouteChoice:
        ranking = self._classifier.rank(text)
        if not ranking.scores:
            return RouteChoice(None, self._default, "default", None)
        sure = ranking.confidence
        if sure < self._threshold:
            return RouteChoice(None, self._default, f"below threshold {sure:.2f} < {self._threshold:.2f}", sure)
        expert = self._experts[ranking.scores[0][0]]
        return RouteChoice(expert, expert.model, f"classifier {sure:.2f}", sure)

    def _fallback(self, down: ExpertConfig, confidence: float | None, is_up: IsUp) -> RouteChoice:
        """Follow fallbacks to something that is up; a circle, or their end, leads to the default model."""
        reason = f"fallback: {down.name} is down"
        seen = {down.name}
        following = down.fallback
        while following is not None and following not in seen:
            seen.add(following)
            expert = self._experts.get(following)
            model = following if expert is None else expert.model
            if is_up(model):
                return RouteChoice(expert, model, reason, confidence)
            following = None if expert is None else expert.fallback
        return RouteChoice(None, self._default, reason, confidence)
